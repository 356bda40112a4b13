"""Keys of the SMOKE detector and of its neck."""

from __future__ import annotations

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config.node import CfgNode as CN  # noqa: N817


def add_smoke(model: FvcoreNode) -> None:
    """Adds MODEL.DLA_UP and MODEL.SMOKE.

    Args:
        model: the MODEL node.
    """
    dla_up = model.DLA_UP = CN()
    dla_up.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # finest first, each of twice the stride before
    dla_up.OUT_CHANNELS = 0  # 0: those of the finest feature, as published (DLA-34: 64, DLA-60: 128)

    smoke = model.SMOKE = CN()
    smoke.FEATURE_CHANNELS = 256  # between the two convolutions of a branch of the head
    # Mean and deviation of depths, and length, height, width of every class of DATASETS.CLASSES in its order
    # (metres): those that the published code measured on KITTI's pedestrians, cyclists and cars.
    smoke.DEPTH_PRIOR = [28.01, 16.32]
    smoke.SIZE_PRIORS = [[0.88, 1.73, 0.67], [1.78, 1.70, 0.58], [3.88, 1.63, 1.53]]
    smoke.PRIOR_CLASSES = []  # whose the rows are; needed for as many classes as the default, but others
    smoke.MIN_OVERLAP = 0.7  # of a 2D box with itself, its corners moved by the radius of its Gaussian
    smoke.MAX_DETECTIONS = 100  # peaks an image
    # Published: 0.25. An average precision only gains from a lower one, such as 0.01: more recall.
    smoke.SCORE_THRESHOLD = 0.25

    loss = smoke.LOSS = CN()
    loss.HEATMAP_WEIGHT = 1.0  # the loss is divided by the number of centres of the batch
    # Published: 10 over 30 objects at most. The sum over all corners is divided by neither objects nor
    # images, so the images a GPU (SOLVER.IMS_PER_BATCH) scale it.
    loss.BOX_WEIGHT = 1.0 / 300
