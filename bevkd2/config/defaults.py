"""Every configuration key with its default, its unit and its legal values.

Keys that exist in Detectron2 carry Detectron2's names and meaning. The keys of a detector, a neck or a
backbone are added by the module that reads them, such as ``bevkd2/modeling/bev/config.py``, and those of a
distillation method (``DISTILL.<NAME>``) by its own ``add_config`` (see :mod:`bevkd2.config.plugins`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fvcore.common.config as fvcore_config
import torch

from bevkd2.config.node import CfgNode as CN  # noqa: N817  (Detectron2's customary alias)
from bevkd2.config.plugins import extend_config


def get_cfg() -> CN:
    """Returns a fresh copy of the default configuration."""
    cfg = CN()
    cfg.VERSION = 2  # of the format of configs, as in Detectron2
    add_bevkd2_config(cfg)
    return cfg


def load_config(path: str | Path, options: Sequence[Any] = ()) -> CN:
    """Returns the default config merged with a YAML file and options, ready for ``build_model``.

    MODEL.DEVICE ``auto`` becomes ``cuda`` where a GPU is visible, else ``cpu``.

    Args:
        path: the YAML file; ``configs/...`` also names a shipped one, from any working directory.
        options: alternating keys and values, as on the command line.
    """
    cfg = read_config(path, options)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = auto_device()
    return cfg


def auto_device() -> str:
    """Returns what MODEL.DEVICE ``auto`` means here: ``cuda`` where a GPU is visible, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_config(path: str | Path, options: Sequence[Any] = ()) -> CN:
    """Returns the default config merged as in :func:`load_config`, MODEL.DEVICE as it is written.

    Args:
        path: the YAML file; empty: none.
        options: alternating keys and values.
    """
    cfg = get_cfg()
    if path:
        cfg.merge_from_file(str(path))
        _check_expected_results(cfg, str(path))
    cfg.merge_from_list(list(options))
    _check_expected_results(cfg, "command line option")
    return cfg


def _check_expected_results(cfg: CN, source: str) -> None:
    """Raises ValueError where TEST.EXPECTED_RESULTS cannot be compared; ``source`` names where it is from."""
    for row in cfg.TEST.EXPECTED_RESULTS:
        if not _is_expected_result(row):
            raise ValueError(
                f"{source}: TEST.EXPECTED_RESULTS has {row!r}, expected [task, metric, score, tolerance]: "
                "two texts and two numbers (YAML reads 1e-1 as text in a list: write 0.1)"
            )


def _is_expected_result(row: Any) -> bool:
    """Returns whether a row of TEST.EXPECTED_RESULTS can be compared with results."""
    kinds = [str, str, float, float]
    return (
        isinstance(row, (list, tuple))
        and len(row) == len(kinds)
        and all(
            type(value) is kind or (kind is float and type(value) is int)
            for value, kind in zip(row, kinds, strict=True)
        )
    )


def add_bevkd2_config(cfg: fvcore_config.CfgNode) -> None:
    """Adds every key of bevkd2 to ``cfg``, which may have begun as Detectron2's own tree.

    Args:
        cfg: a config node; keys of the same name are overwritten, others are left alone.
    """
    cfg.OUTPUT_DIR = "output"  # checkpoints, logs and results are written there
    cfg.SEED = -1  # < 0: a fresh seed for every run, logged
    # let cuDNN choose its algorithms by timing them; results may then differ between runs
    cfg.CUDNN_BENCHMARK = False
    cfg.HOOKS = []  # names in HOOK_REGISTRY; they run in this order, after evaluation and before the writers
    for name in ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST"):
        if name not in cfg:
            cfg[name] = CN()
    _add_model(cfg.MODEL)
    _add_data(cfg)
    _add_solver(cfg.SOLVER)
    _add_test(cfg.TEST)
    _add_distill(cfg)
    extend_config(cfg)


def _node(parent: fvcore_config.CfgNode, name: str) -> fvcore_config.CfgNode:
    if name not in parent:
        parent[name] = CN()
    return parent[name]


def _add_model(model: fvcore_config.CfgNode) -> None:
    # a name in META_ARCH_REGISTRY; Distiller trains a student from a teacher
    model.META_ARCHITECTURE = "BEVFormer"
    # "auto": a GPU where one is visible, else the CPU (logged) | "cuda" | "cuda:1" | "cpu"
    model.DEVICE = "auto"
    model.WEIGHTS = ""  # a checkpoint of the whole model; every key must match, but for ALLOW_MISSING
    model.ALLOW_MISSING = []  # key prefixes that WEIGHTS may lack where a training starts; not in evaluation
    model.PIXEL_FORMAT = "RGB"  # channel order in which the backbone was trained: "RGB" | "BGR"
    model.PIXEL_MEAN = [123.675, 116.28, 103.53]  # in the order of PIXEL_FORMAT, 0..255
    model.PIXEL_STD = [58.395, 57.12, 57.375]  # standard deviations, in the same order and unit
    model.SIZE_DIVISIBILITY = 32  # images are padded, right and bottom, to a multiple of it (pixels)

    backbone = _node(model, "BACKBONE")
    backbone.NAME = "build_bevkd2_resnet_backbone"  # a name in BACKBONE_REGISTRY
    # What initialises the backbone alone: a local file (.pth, .safetensors), or weights of a library
    # ("torchvision://resnet50", "timm://dla34"), which are downloaded into that library's own cache.
    backbone.WEIGHTS = ""
    # Normalisation: "FrozenStatsBN": running statistics, the affine part learns but in frozen stages |
    # "FrozenBN": running statistics, the affine part is fixed too (Detectron2's) | "BN" | "GN"
    backbone.NORM = "FrozenStatsBN"
    backbone.FREEZE_AT = 2  # stages frozen, the stem counted as the first; 0: none
    backbone.CHECKPOINTING = False  # recompute the backbone's stages in the backward pass to save memory

    resnets = _node(model, "RESNETS")
    resnets.DEPTH = 50  # 10 (one basic block per stage) | 18 | 34 | 50 | 101 | 152
    resnets.STEM_OUT_CHANNELS = 64  # channels of the stem
    resnets.RES2_OUT_CHANNELS = 256  # 64 for basic blocks (depth 10, 18, 34); doubles with every stage
    resnets.NUM_GROUPS = 1  # ResNeXt: 32 or 64
    resnets.WIDTH_PER_GROUP = 64  # ResNeXt-101 32x8d: 8
    resnets.STRIDE_IN_1X1 = False  # True: caffe style
    resnets.DEFORM_ON_PER_STAGE = [False, False, False, False]  # res2..res5: DCNv2 in every 3x3
    resnets.OUT_FEATURES = ["res5"]  # stages whose features are returned, of res2 to res5


def _add_data(cfg: fvcore_config.CfgNode) -> None:
    # Decode JPEGs at 1/2, 1/4 or 1/8 of their size where the model reads images that small: faster, and the
    # pixels are averages of more pixels of the file
    cfg.INPUT.REDUCED_DECODING = False
    cfg.INPUT.PHOTOMETRIC = True  # brightness, contrast, saturation, hue, channel order; training only

    # What a data format alone reads is added by the format (bevkd2/data/kitti.py, ...).
    data = cfg.DATASETS
    # A name in DATA_FORMAT_REGISTRY: "nuscenes": multi-view | "kitti" | "nuscenes_mono": single images
    data.FORMAT = "nuscenes"
    # Where a relative folder does not exist, it is looked for in the folder DETECTRON2_DATASETS.
    data.ROOT = "data/nuscenes"
    data.TRAIN = ("train",)  # names of splits
    data.TEST = ("val",)  # names of splits to evaluate on
    # What is detected, in the order of the labels; []: the format's default. Other objects are background.
    data.CLASSES = []

    cfg.DATALOADER.NUM_WORKERS = 4  # per process
    cfg.DATALOADER.PIN_MEMORY = (
        False  # batches in page-locked memory, which is copied to a GPU in the background
    )
    cfg.DATALOADER.CACHE_IMAGES = False  # keep decoded, resized training images in memory: for small worlds


def _add_solver(solver: fvcore_config.CfgNode) -> None:
    solver.IMS_PER_BATCH = 8  # samples per step, over all processes
    # Parts into which each process divides its samples of a step; they are computed one after another, and
    # the weights move once, so that the memory is that of a part
    solver.ACCUMULATION_STEPS = 1
    # How long to train, one of the two: iterations, or passes over the data. Where EPOCHS is set, STEPS,
    # CHECKPOINT_PERIOD and TEST.EVAL_PERIOD are in epochs too; keys that end in ITERS stay in iterations.
    solver.MAX_ITER = 0
    solver.EPOCHS = 0.0  # passes over the training data; 0: MAX_ITER is used
    # The number of processes that this node's numbers are for; with another number they are scaled, as by
    # Detectron2, so that a process's batch stays. 0: never scaled.
    solver.REFERENCE_WORLD_SIZE = 0
    solver.OPTIMIZER = "ADAMW"  # | "ADAM" | "SGD"
    solver.BASE_LR = 2e-4  # learning rate of a step of IMS_PER_BATCH samples
    solver.MOMENTUM = 0.9  # of SGD
    solver.BACKBONE_MULTIPLIER = 0.1  # factor of BASE_LR for the image backbone
    solver.BIAS_LR_FACTOR = 1.0  # factor of the learning rate for biases of convolutions and linear layers
    solver.WEIGHT_DECAY = 0.01  # on every parameter, as published (BEVFormer)
    solver.WEIGHT_DECAY_BIAS = -1.0  # on those biases; < 0: WEIGHT_DECAY
    solver.LR_SCHEDULER_NAME = "WarmupCosineLR"  # | "WarmupMultiStepLR"
    # The schedule changes every so many iterations; 1: always, 0: once per epoch, as published
    solver.LR_HOLD_ITERS = 1
    solver.BASE_LR_END = 2e-7  # cosine's last value
    solver.STEPS = (60000, 80000)  # iterations (or epochs) at which WarmupMultiStepLR multiplies by GAMMA
    solver.GAMMA = 0.1  # factor of the learning rate at each of STEPS
    solver.WARMUP_ITERS = 500  # iterations of the warm-up
    solver.WARMUP_FACTOR = 1.0 / 3  # factor of the learning rate at its start
    solver.WARMUP_METHOD = "linear"  # | "constant"
    solver.CHECKPOINT_PERIOD = 3517  # iterations (or epochs) between two checkpoints
    solver.CHECKPOINTS_TO_KEEP = 3  # periodic ones; model_best and model_final stay
    clip = _node(solver, "CLIP_GRADIENTS")
    clip.ENABLED = True  # scale gradients down to CLIP_VALUE
    clip.CLIP_VALUE = 35.0  # largest L2 norm over all parameters
    clip.NORM_TYPE = 2.0  # 2.0: the L2 norm
    ema = _node(solver, "EMA")
    ema.ENABLED = False  # evaluate and save an exponential moving average of the weights as the model
    ema.DECAY = 0.999  # share of the average that a step keeps; at first less: (1 + steps) / (10 + steps)
    compiled = _node(solver, "COMPILE")
    compiled.MODEL = False  # torch.compile of the model that is trained, in a distillation of the student
    compiled.TEACHER = False  # torch.compile of the teachers
    compiled.BACKEND = (
        "inductor"  # | "aot_eager" and "eager", to find a fault; or another one of torch.compile
    )
    solver.CHANNELS_LAST = False  # weights and feature maps in memory as (N, H, W, C)
    # Batch normalisations with statistics of a batch take those of all processes; GPUs only
    solver.SYNC_BN = False
    amp = _node(solver, "AMP")
    amp.ENABLED = False  # mixed precision (autocast) in training
    amp.DTYPE = "bfloat16"  # | "float16" (with a loss scaler)


def _add_test(test: fvcore_config.CfgNode) -> None:
    test.EVAL_PERIOD = 0  # iterations (or epochs) between two evaluations; 0: at the end only
    test.BEST_METRIC = "bbox/NDS"  # which checkpoint is kept as model_best
    test.EXPECTED_RESULTS = []  # [["bbox", "mAP", 0.252, 0.002]]: exit status 1 beyond the tolerance
    test.PRINT_PERIOD = 50  # iterations between console lines
    board = test.TENSORBOARD = CN()
    board.PICTURES = 0  # samples of the first test split that are drawn at every evaluation; 0: none
    # Keys whose values TensorBoard's HParams page shows with the final scores.
    board.HPARAMS = [
        *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "DISTILL.METHODS", "SEED"),
        *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY"),
    ]


def _add_distill(cfg: fvcore_config.CfgNode) -> None:
    cfg.DISTILL = CN()
    cfg.DISTILL.STUDENT = CN()
    # Where MODEL.META_ARCHITECTURE is a Distiller: the architecture of the student in it. A merge fills it
    # with the name that the Distiller replaces; no YAML file has to repeat it.
    cfg.DISTILL.STUDENT.META_ARCHITECTURE = ""
    teacher = cfg.DISTILL.TEACHER = CN()
    teacher.CONFIG = (
        ""  # the teacher's YAML, relative to the YAML that names it, or a shipped one (configs/...)
    )
    teacher.WEIGHTS = ""  # its checkpoint, relative to the working directory; every key must match
    teacher.OPTS = []  # KEY VALUE overrides of the teacher's config
    teacher.RESOLVED = CN(new_allowed=True)  # filled by the set-up from CONFIG and OPTS, and dumped
    teacher.DTYPE = "float32"  # | "bfloat16" | "float16": autocast of the teacher's forward pass
    # True: the teacher's samples have its own INPUT.IMAGE_SCALE, RESIZE_* and QUEUE_LENGTH, and the student's
    # augmentation | False: both get the same sample
    teacher.OWN_INPUT = False
    # Folder that keeps the teacher's outputs for each sample, so that its forward pass runs once per sample;
    # "": it runs in every step. Samples must be the same in every epoch: no random augmentation
    teacher.CACHE = ""
    teacher.CACHE_DTYPE = "float32"  # | "float16" | "bfloat16": of the numbers in CACHE
    teacher.EVALUATE = False  # score the teacher on DATASETS.TEST before training, and log it
    cfg.DISTILL.METHODS = []  # names in DISTILL_REGISTRY
    # Further teachers: mappings with NAME, METHODS, the keys of TEACHER (CONFIG, WEIGHTS, ...) and, where a
    # method has other settings with this teacher, SETTINGS: {<node>: {<key>: value}}
    cfg.DISTILL.MORE_TEACHERS = []
    cfg.DISTILL.FACTOR = 0.01  # multiplies every method's WEIGHT (paper 1, Eq. 9)
    cfg.DISTILL.WARMUP = 0.0  # share of the iterations, at the beginning, over which FACTOR rises from 0
    cfg.DISTILL.DECAY = 0.0  # share of the iterations, at the end, over which FACTOR falls to 0
    # The student's own random augmentation (GridMask) is applied to the teacher's images too
    cfg.DISTILL.SHARE_AUGMENTATION = True
    inherit = cfg.DISTILL.INHERIT = CN()
    inherit.MODE = "off"  # "freeze" (the paper's) | "init" (its ablation) | "off"
    # What is inherited: the paper fixes BEV queries and positional encodings. Not the paper's, to be added:
    # object_queries (together with reference_points), can_bus_mlp, level_embeddings, camera_embeddings, or
    # any prefix of the names in the state dicts, such as neck
    inherit.PARAMS = ["bev_queries", "bev_position"]
    inherit.RESIZE = ""  # "": different BEV grids are an error | "bilinear"
    # What starts as the teacher's and is trained: prefixes of the names in the student's state dict, such as
    # neck, decoder or head. Not the papers'; FGD and FocalDistiller do so.
    inherit.INIT_PARAMS = []
