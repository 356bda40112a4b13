"""Keys of the dense monocular detectors: what FCOS3D and PGD share, and what PGD adds."""

from __future__ import annotations

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config.node import CfgNode as CN  # noqa: N817  (Detectron2's customary alias)


def add_fcos3d(model: FvcoreNode) -> None:
    """Adds ``MODEL.FCOS3D`` and ``MODEL.PGD``; the values are those of the published PGD on KITTI.

    The number of classes is that of ``DATASETS.CLASSES``, and the priors are in its order.

    Args:
        model: the node ``MODEL``.
    """
    model.FCOS3D = CN()
    _add_shared(model.FCOS3D)
    model.PGD = CN()
    _add_pgd(model.PGD)


def _add_shared(head: FvcoreNode) -> None:
    head.FEATURE_CHANNELS = 256  # of both towers
    head.STACKED_CONVS = 2  # of each tower
    head.DCN_ON_LAST_CONV = True  # the last of them is DCNv2
    head.ATTRIBUTES = 0  # attribute classes; nuScenes: 9, the last stands for none
    head.VELOCITY = False  # predict vx, vz
    # Mean and deviation (m) of the depth, one pair or one a class; []: the exponential of the raw number.
    head.DEPTH_PRIORS = [[28.01, 16.32]]
    # Length, height, width (m) of every class, multiplied by an exponential; []: the exponential alone.
    head.SIZE_PRIORS = [[0.8, 1.73, 0.6], [1.76, 1.73, 0.6], [3.9, 1.56, 1.6]]
    head.PRIOR_CLASSES = []  # whose the rows are; needed for as many classes as the default, but others
    head.DIRECTION_OFFSET = 0.7854  # where the first half of local yaws begins (rad; published: rounded pi/4)

    # Channels of the 3x3 convolutions that each branch has of its own, before the 1x1 that puts out numbers.
    branches = head.BRANCHES = CN()
    for name in ("CLASS", "ATTRIBUTES", "OFFSET", "DEPTH", "SIZE", "ROTATION", "DIRECTION", "CENTERNESS"):
        branches[name] = [256]
    branches.VELOCITY = []

    # Farthest side of the 2D box (px) above which an object belongs to the next level; one less than levels.
    head.REGRESS_BOUNDS = [64.0, 128.0, 256.0]
    head.CENTER_RADIUS = 1.5  # strides around the projected centre within which locations stand for an object

    loss = head.LOSS = CN()
    loss.FOCAL_ALPHA = 0.25
    loss.FOCAL_GAMMA = 2.0
    loss.BETA = 1.0 / 9  # smooth L1 of boxes turns linear there
    loss.DEPTH_BETA = 3.0  # that of depths (m)
    # of dx dy depth length height width yaw [vx vz]
    loss.CODE_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    loss.CLASS_WEIGHT = 1.0
    loss.DIRECTION_WEIGHT = 1.0
    loss.CENTERNESS_WEIGHT = 1.0
    loss.ATTRIBUTE_WEIGHT = 1.0

    test = head.TEST = CN()
    test.CANDIDATES_PER_LEVEL = 100  # locations that each level sends to the suppression
    test.NMS_THRESHOLD = 0.05  # IoU of footprints, within a class
    # Suppress at equality too, as mmcv's CPU kernel does; its CUDA kernel and published evaluations do not.
    test.NMS_INCLUSIVE = False
    test.SCORE_THRESHOLD = 0.001
    test.MAX_DETECTIONS = 20


def _add_pgd(head: FvcoreNode) -> None:
    head.DEPTH_BINS = 8  # depths of the distribution: 0, DEPTH_UNIT, 2 DEPTH_UNIT...
    head.DEPTH_UNIT = 10.0  # metres
    head.UNCERTAINTY = True  # predict the log scale of the depth, which weighs its loss and the scores
    head.KEYPOINTS = True  # learn the eight projected corners too
    head.BOXES2D = True  # predict the 2D box too
    branches = head.BRANCHES = CN()
    for name in ("DEPTH_BINS", "UNCERTAINTY", "KEYPOINTS", "BOXES2D"):
        branches[name] = [256]

    loss = head.LOSS = CN()
    loss.UNCERTAINTY_WEIGHT = 1.0
    loss.KEYPOINT_WEIGHT = 0.2  # of each of the 16 numbers
    loss.BOX2D_WEIGHT = 1.0  # of each of the four distances, and of the consistency
    loss.CONSISTENCY_WEIGHT = 1.0  # between the 2D box and the projected 3D box; 0: off
    loss.CONSISTENCY_DEPTH = "direct"  # | "fused" (published on nuScenes): depth that places the 3D box
