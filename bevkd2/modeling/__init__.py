"""Detectors and their parts: the public API of everything that a detector of one's own needs.

Importing this package registers the backbones and meta-architectures, and adds their config keys.
"""

from bevkd2.modeling import backbones  # noqa: F401  (registers)
from bevkd2.modeling.bev import (
    BEVFormer,
    BEVInputs,
    BEVTargets,
    Frames,
    MultiViewDetector,
    pillar_points,
    project_pillars,
)
from bevkd2.modeling.bev.decoder import DecoderOutput
from bevkd2.modeling.deployable import DeployableDetector, Port
from bevkd2.modeling.detector import (
    BEVShape,
    DecoderShape,
    Detector,
    FeatureShapes,
    detector_arguments,
)
from bevkd2.modeling.heatmaps import HeatmapHead, draw_heatmap, gaussian_radius, heatmap_loss
from bevkd2.modeling.knowledge import (
    COSTLY,
    BEVKnowledge,
    Knowledge,
    MonoKnowledge,
    PreActivation,
    TemporalState,
)
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.modeling.mono import (
    BACKGROUND,
    FCOS3D,
    PGD,
    SMOKE,
    DenseGrid,
    MonoDetector,
    MonoInputs,
    MonoTargets,
    assign_locations,
    flatten_levels,
)
from bevkd2.modeling.necks import FPN, DLAUp, Neck
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.modeling.sample import Sample, sample_name

__all__ = [
    "BACKGROUND",
    "COSTLY",
    "FCOS3D",
    "FPN",
    "PGD",
    "SMOKE",
    "BEVFormer",
    "BEVInputs",
    "BEVKnowledge",
    "BEVShape",
    "BEVTargets",
    "DLAUp",
    "DecoderOutput",
    "DecoderShape",
    "DenseGrid",
    "DeployableDetector",
    "Detector",
    "FeatureShapes",
    "Frames",
    "HeatmapHead",
    "Knowledge",
    "MonoDetector",
    "MonoInputs",
    "MonoKnowledge",
    "MonoTargets",
    "MultiViewDetector",
    "Neck",
    "PixelNormalizer",
    "Port",
    "PreActivation",
    "Sample",
    "TemporalState",
    "assign_locations",
    "average_over_ranks",
    "detector_arguments",
    "draw_heatmap",
    "flatten_levels",
    "gaussian_radius",
    "heatmap_loss",
    "pillar_points",
    "project_pillars",
    "sample_name",
]
