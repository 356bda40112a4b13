"""What the tests of all methods know about each: on what it runs, and what holds for it."""

from __future__ import annotations

import dataclasses
from typing import Any

from bevkd2.distill import Distiller
from tests.distill.methods.harness import DETECTORS, build_pair


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method with one setting."""

    method: str
    """Its name in the registry."""
    detectors: tuple[str, ...] = DETECTORS
    """Of ``harness.DETECTORS``: those on which it runs. On the others, building it is an error."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of its node that differ from the defaults."""
    options: tuple[Any, ...] = ()
    """KEY, VALUE, ... of both detectors' configs."""
    student_width: int = 8
    """Channels of the student's neck; the teacher's has 16."""
    zero: bool = True
    """The loss of a student that is the teacher is 0 (methods whose minimum is elsewhere say False)."""
    per_sample: bool = True
    """The loss of a batch of two is the mean of those of its samples."""
    divided: str = ""
    """Why loss and gradient depend on how a batch is divided into processes; empty: the mean over two
    processes with one sample each is that of one process with both."""
    joint_settings: dict[str, Any] | None = None
    """Further keys with which they do not depend on it, beside fixed statistics of the method's own batch
    normalisations; None: there are none."""
    reaches: tuple[str, ...] = ("image_backbone", "neck")
    """Parts of the student (prefixes of parameter names) that get a gradient of the method alone."""
    images: int = 2
    """Samples of a batch."""
    weight: float = 1.0
    """Of the method beside the detection losses in these steps."""
    lr: float = 1e-2
    """Of the twenty steps in which the loss has to fall."""

    def __str__(self) -> str:
        """Returns the name and the settings, as the test's identifier."""
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.settings.items())])


_BEV = ("BEVFormer",)
_MONO = ("PGD", "SMOKE")
_DECODER = ("image_backbone", "neck", "encoder", "decoder.layers.0", "decoder.layers.1")
_HEATMAPS = (
    *("MODEL.BEVFORMER.AUX.BEV_HEATMAP_WEIGHT", 1.0),
    *("MODEL.BEVFORMER.AUX.IMAGE_HEATMAP_WEIGHT", 1.0),
)
_STATISTICS = "features are normalised by their mean and deviation over the batch of a process"
_COMPARED = "the images of a process are compared with each other"
_MASKS = "every row of a batch gets a random mask of its own"
_NORMALISED = "batch normalisations of the method take the statistics of the batch of a process"

CATALOG = [
    Entry(
        "TemporalAttention",
        _BEV,
        student_width=16,
        reaches=("encoder.layers.0.temporal_attention", "encoder.layers.1.temporal_attention"),
    ),
    Entry(
        "SpatialAttention",
        _BEV,
        student_width=16,
        reaches=("encoder.layers.0.spatial_attention", "encoder.layers.1.spatial_attention"),
    ),
    Entry("BEVResponse", _BEV, reaches=("image_backbone", "neck", "encoder")),
    Entry("PerspectiveFeature", settings={"ADAPTER": "none"}, student_width=16),
    Entry("PerspectiveFeature"),
    Entry(
        "DepthGuidedPrediction",
        _MONO,
        per_sample=False,
        reaches=("image_backbone", "neck", "head"),
        weight=100.0,
        lr=2e-3,
    ),
    Entry("PKD", per_sample=False, divided=_STATISTICS),
    Entry(
        "PKD",
        _BEV,
        {"SOURCES": ["bev"]},
        per_sample=False,
        divided=_STATISTICS,
        reaches=("image_backbone", "neck", "encoder"),
    ),
    Entry(
        "PKD",
        _BEV,
        {"SOURCES": ["bev.layers", "bev.spatial.1"]},
        per_sample=False,
        divided=_STATISTICS,
        reaches=("encoder",),
    ),
    Entry("FGD"),
    Entry("FGD", _BEV, {"SOURCES": ["fpn", "bev"]}, reaches=("image_backbone", "neck", "encoder")),
    Entry("DeFeat", per_sample=False),
    Entry("DeFeat", _BEV, {"SOURCES": ["backbone.res4", "bev"]}, per_sample=False, reaches=("encoder",)),
    Entry("FGFI", per_sample=False),
    Entry(
        "FBKD",
        zero=False,
        per_sample=False,
        divided="each norm is the root of a sum over the batch of a process",
    ),
    Entry("TAR", per_sample=False),
    Entry(
        "GID",
        _MONO,
        {"LEAST_SIDE": 0.0},
        per_sample=False,
        divided="relations are those between the instances of a process",
        reaches=("image_backbone", "neck", "head"),
        weight=10.0,
        lr=1e-3,
    ),
    Entry(
        "GID",
        _MONO,
        {"LEAST_SIDE": 0.0, "RELATION_WEIGHT": 0.0},
        per_sample=False,
        reaches=("image_backbone", "neck", "head"),
        weight=10.0,
        lr=1e-3,
    ),
    Entry("FitNet"),
    Entry("AT", weight=1000.0),
    Entry("SP", per_sample=False, divided=_COMPARED, weight=3000.0, lr=1e-4),
    Entry("RKD", per_sample=False, divided=_COMPARED, images=3, weight=10.0, lr=1e-3),
    Entry("VID", zero=False),
    Entry(
        "OFD",
        options=("MODEL.BACKBONE.NORM", "FrozenStatsBN"),
        zero=False,
        per_sample=False,
        divided=_NORMALISED,
        joint_settings={},
        reaches=("image_backbone",),
    ),
    Entry(
        "KDDETR",
        _BEV,
        {"QUERIES": 12},
        student_width=16,
        zero=False,  # the student's first layers learn from the teacher's last
        per_sample=False,
        reaches=_DECODER,
    ),
    Entry("D3ETR", _BEV, student_width=16, per_sample=False, reaches=_DECODER),
    Entry(
        "DETRDistill",
        _BEV,
        student_width=16,
        zero=False,  # the query prior learns from the objects
        per_sample=False,
        reaches=_DECODER,
    ),
    Entry(
        "DETRDistill",
        _BEV,
        {"PRIOR": False, "NEGATIVES": 4, "TOP_QUERIES": 8},
        per_sample=False,
        reaches=_DECODER,
    ),
    Entry("CrossKD", _MONO, per_sample=False, divided=_STATISTICS),
    Entry(
        "TempDistiller",
        _BEV,
        zero=False,  # the generator is no identity
        per_sample=False,
        divided=_MASKS,
        joint_settings={"MASK_RATIO": 0.0},
        reaches=("image_backbone", "neck", "encoder"),
    ),
    Entry("CWD"),
    Entry(
        "CWD", _BEV, {"SOURCES": ["bev"], "TEMPERATURE": 2.0}, reaches=("image_backbone", "neck", "encoder")
    ),
    Entry("MGD", zero=False, per_sample=False, divided=_MASKS, joint_settings={"MASK_RATIO": 0.0}),
    Entry(
        "MGD",
        _BEV,
        {"SOURCES": ["bev"]},
        zero=False,
        per_sample=False,
        divided=_MASKS,
        joint_settings={"MASK_RATIO": 0.0},
        reaches=("neck", "encoder"),
    ),
    Entry("HintonKD", reaches=("image_backbone", "neck"), weight=100.0, lr=2e-3),
    Entry(
        "HintonKD",
        _MONO,
        {"LOCATIONS": "objects"},
        per_sample=False,
        reaches=("neck", "head"),
        weight=100.0,
        lr=2e-3,
    ),
    Entry("DKD", _MONO, per_sample=False, reaches=("image_backbone", "neck", "head"), weight=100.0, lr=2e-3),
    Entry(
        "DIST",
        per_sample=False,
        divided="L_intra correlates the locations of the batch of a process",
        joint_settings={"INTRA_WEIGHT": 0.0},
    ),
    Entry("BEVFeature", _BEV, reaches=("image_backbone", "neck", "encoder")),
    Entry("BEVFeature", _BEV, {"SOURCES": ["bev.layers"], "MASK": "foreground"}, reaches=("encoder",)),
    Entry("BEVFeature", _BEV, {"MASK": "adaptive"}, reaches=("image_backbone", "neck", "encoder")),
    Entry(
        "Heatmap",
        _BEV,
        {"MAPS": ["bev", "image"]},
        options=_HEATMAPS,
        per_sample=False,
        reaches=("image_backbone", "neck", "encoder"),
        weight=100.0,
        lr=2e-3,
    ),
    Entry(
        "Heatmap",
        ("SMOKE",),
        {"MAPS": ["dense"]},
        per_sample=False,
        reaches=("neck", "head"),
        weight=100.0,
        lr=2e-3,
    ),
    Entry(
        "ReviewKD",
        ("PGD",),
        {"MID_CHANNELS": 8},
        zero=False,
        per_sample=False,
        divided=_NORMALISED,
        joint_settings={},
    ),
    Entry(
        "ReviewKD",
        _BEV,
        {"SOURCES": ["bev.layers"], "MID_CHANNELS": 8},
        zero=False,
        per_sample=False,
        divided=_NORMALISED,
        joint_settings={},
        reaches=("image_backbone", "neck", "encoder"),
    ),
    Entry(
        "TemporalAttention",
        _BEV,
        {"DISTANCE": "kl", "REDUCTION": "sum", "LAYERS": "sum"},
        student_width=16,
        reaches=("encoder.layers.0.temporal_attention", "encoder.layers.1.temporal_attention"),
    ),
    Entry(
        "SpatialAttention",
        _BEV,
        {"OFFSETS": 0.1, "COUNT": "camera", "UNSEEN": True},
        student_width=16,
        reaches=("encoder.layers.0.spatial_attention", "encoder.layers.1.spatial_attention"),
    ),
    Entry(
        "SpatialAttention",
        _BEV,
        {"REDUCTION": "mean", "COUNT": "camera"},
        student_width=16,
        per_sample=False,
        reaches=("encoder.layers.0.spatial_attention", "encoder.layers.1.spatial_attention"),
        weight=1000.0,
    ),
    Entry("BEVResponse", _BEV, {"REDUCTION": "cell"}, per_sample=False, reaches=("encoder",), weight=100.0),
    Entry("BEVResponse", _BEV, {"SOURCES": ["bev", "bev.layers.0"]}, reaches=("encoder.layers.0",)),
]
"""Every method of the registry, at least once."""

CASES = [(entry, detector) for entry in CATALOG for detector in entry.detectors]


def pair_of(entry: Entry, detector: str, same: bool = False) -> Distiller:
    """A Distiller of tiny detectors with the method alone."""
    return build_pair(
        detector,
        entry.method,
        student_width=entry.student_width,
        same=same,
        options=entry.options,
        weight=entry.weight,
        **entry.settings,
    )
