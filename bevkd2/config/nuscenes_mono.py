"""Keys of the monocular evaluation on nuScenes."""

from __future__ import annotations

import fvcore.common.config as fvcore_config

from bevkd2.config.node import CfgNode as CN  # noqa: N817  (Detectron2's customary alias)


def add_nuscenes_mono(test: fvcore_config.CfgNode) -> None:
    """Adds ``TEST.NUSCENES_MONO``: how the cameras of a key frame become one list of boxes.

    Args:
        test: the node ``TEST``.
    """
    node = test.NUSCENES_MONO = CN()
    # The values are those of mmdetection3d's NuScenesMonoDataset.
    node.SCORE_THRESHOLD = 0.01  # detections of a camera below it are dropped
    node.NMS_THRESHOLD = 0.05  # rotated IoU on the ground above which the lower score goes, within a class
    node.MAX_PER_SAMPLE = 500  # detections of a key frame; the official evaluation refuses more than 500
