"""The names of nuscenes-devkit that bevkd2 uses: the only module that imports the devkit."""

try:
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt_of_sample_tokens
    from nuscenes.eval.common.utils import (
        attr_acc,
        center_distance,
        cummean,
        scale_iou,
        velocity_l2,
        yaw_diff,
    )
    from nuscenes.eval.detection.algo import calc_ap, calc_tp
    from nuscenes.eval.detection.constants import TP_METRICS
    from nuscenes.eval.detection.data_classes import (
        DetectionBox,
        DetectionConfig,
        DetectionMetricData,
        DetectionMetricDataList,
        DetectionMetrics,
    )
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.splits import create_splits_scenes
except ModuleNotFoundError as error:
    if str(error.name).split(".")[0] == "nuscenes":
        raise ModuleNotFoundError(
            "nuscenes-devkit is not installed, and bevkd2 reads and scores nuScenes with it. Install it: "
            'pip install --no-deps "nuscenes-devkit>=1.2" (--no-deps, since it requires numpy < 2, which has '
            "no wheel for Python 3.13 and newer; what it imports comes with bevkd2)",
            name="nuscenes",
        ) from error
    raise ModuleNotFoundError(
        f"nuscenes-devkit imports {error.name}, which is not installed. Install bevkd2 again, or the package "
        "that provides it: what bevkd2 needs of the devkit's requirements is listed in its pyproject.toml",
        name=error.name,
    ) from error

__all__ = [
    "TP_METRICS",
    "DetectionBox",
    "DetectionConfig",
    "DetectionEval",
    "DetectionMetricData",
    "DetectionMetricDataList",
    "DetectionMetrics",
    "EvalBoxes",
    "NuScenes",
    "NuScenesCanBus",
    "add_center_dist",
    "attr_acc",
    "calc_ap",
    "calc_tp",
    "category_to_detection_name",
    "center_distance",
    "config_factory",
    "create_splits_scenes",
    "cummean",
    "filter_eval_boxes",
    "load_gt_of_sample_tokens",
    "scale_iou",
    "velocity_l2",
    "yaw_diff",
]
