"""Counts the parameters of a config's models, the multiply-adds of one image, and its seconds where asked.

    bevkd2 analyze --config-file configs/pgd/pgd_r18_kitti.yaml
    bevkd2 analyze --config-file configs/distill_pgd_r18.yaml --time 10 --json analysis.json

Parameters are counted for every config; of a distillation, those of student, teacher and adapters.

FLOPs and seconds are those of one image in evaluation, of monocular detectors alone: how much BEVFormer
computes depends on which cells its cameras see. The image has the size that the config gives it, from 1242 x
375 for KITTI and 1600 x 900 for nuScenes (--image-size for other data), and is padded as the model pads it.

FLOPs are fvcore's: one multiply-add is one, a normalised value two (batch) or five (group). A deformable
convolution is counted as the convolution of the columns that it gathers, and four for every value gathered,
as fvcore counts other bilinear sampling. They are those from pixels to maps; the choice of detections among
those is not counted. Operators without a rule, mostly elementwise, are not counted either, and are listed.

Seconds are the median of whole forward passes, detections included, on noise and with random weights, on
MODEL.DEVICE.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from tabulate import tabulate
from torch import Tensor, nn

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.cli.make_synthetic import parse_size
from bevkd2.cli.paths import path_to_write
from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.data.format import data_format
from bevkd2.data.mono.transforms import fitting_size
from bevkd2.distill import is_distillation, resolve_teacher, student_config, teacher_config
from bevkd2.distill.methods import DISTILL_REGISTRY
from bevkd2.engine.defaults import add_import_option, load_args, resolve_device
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.modeling import Detector, MonoDetector, MonoInputs

PARTS = {"image_backbone": "backbone", "neck": "neck"}
"""Children that every detector has, and what they are called here; other children keep their names."""

WARM_UP = 2
"""Forward passes that are not timed."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a detector or of a distillation")
    add_import_option(parser)
    parser.add_argument(
        "--image-size", type=parse_size, metavar="WxH", help="of the files, instead of the data's usual one"
    )
    parser.add_argument("--parameters-only", action="store_true", help="no FLOPs: quick, and takes no memory")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="time N forward passes, too")
    parser.add_argument("--json", type=path_to_write, metavar="OUT", help="write the counts there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    args = parser.parse_args(argv)
    if args.time < 0 or (args.time and args.parameters_only):
        parser.error("--time takes a number of passes, 0 or more, and does not go with --parameters-only")
    return args


def analyze(
    cfg: CfgNode, *, file_size: tuple[int, int] | None = None, passes: int = 0, flops: bool = True
) -> dict[str, Any]:
    """Counts everything.

    Args:
        cfg: of a detector or of a distillation.
        file_size: width and height of the images before INPUT.RESIZE_TEST; None: the data's usual one.
        passes: timed forward passes; 0: none.
        flops: whether to count FLOPs, where the model is monocular.

    Returns:
        ``models``: by role ("model", or "student" and "teacher") what :func:`analyze_detector` returns;
        ``adapters``: of a distillation, the parameters of each method.

    Raises:
        KeyError, ValueError: the config cannot be built.
    """
    if not is_distillation(cfg):
        return {"models": {"model": analyze_detector(cfg, file_size, passes, flops)}}
    resolve_teacher(cfg)
    roles = {"student": student_config(cfg), "teacher": teacher_config(cfg)}
    models = {role: analyze_detector(each, file_size, passes, flops) for role, each in roles.items()}
    return {"models": models, "adapters": adapter_parameters(cfg, roles["student"], roles["teacher"])}


def analyze_detector(
    cfg: CfgNode, file_size: tuple[int, int] | None = None, passes: int = 0, flops: bool = True
) -> dict[str, Any]:
    """Counts one detector.

    Args:
        cfg: its config.
        file_size, passes, flops: see :func:`analyze`.

    Returns:
        ``architecture``; ``parameters`` by part; and of monocular detectors ``image_size`` (width and height
        of what the network reads, padding included), ``flops`` by part, ``not_counted`` (operators, and how
        often they stand in the network), ``seconds`` and ``device``.
    """
    model = build(cfg, "meta")
    report: dict[str, Any] = {"architecture": type(model).__name__, "parameters": count_parameters(model)}
    if not (flops and isinstance(model, MonoDetector)):
        return report
    sample = noise(cfg, file_size)
    report |= count_flops(cast(MonoDetector, build(cfg, "cpu")), sample)
    if passes:
        device = resolve_device(cfg.MODEL.DEVICE)
        timed = cast(MonoDetector, build(cfg, device))
        report |= {"seconds": median_seconds(timed, sample, passes), "device": device}
    return report


def build(cfg: CfgNode, device: str) -> Detector[Any, Any, Any]:
    """Builds a config's model with random weights, in eval mode.

    Args:
        cfg: of a detector; not changed. Its ``MODEL.DEVICE`` and initial weights are ignored.
        device: where the model is; on "meta" it takes no memory.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.WEIGHTS = device, ""
    with torch.device(device):
        model: Detector[Any, Any, Any] = build_model(cfg).eval()
        return model


def adapter_parameters(cfg: CfgNode, student: CfgNode, teacher: CfgNode) -> dict[str, int]:
    """Counts the parameters of each of a distillation's methods.

    Args:
        cfg: of the distillation.
        student: the student's own config.
        teacher: the teacher's.

    Returns:
        Numbers by the method's name, in the order of ``DISTILL.METHODS``.
    """
    shapes = build(student, "meta").feature_shapes(), build(teacher, "meta").feature_shapes()
    methods = {name: DISTILL_REGISTRY.get(name) for name in cfg.DISTILL.METHODS}
    with torch.device("meta"):
        built = {name: method(cfg.DISTILL[method.node], *shapes) for name, method in methods.items()}
    return {name: sum(p.numel() for p in method.parameters()) for name, method in built.items()}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Returns the parameters by part (a child of the model; "others": its own) and in all ("total")."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        child, dot, _ = name.partition(".")
        part = PARTS.get(child, child) if dot else "others"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {**counts, "total": sum(counts.values())}


def noise(cfg: CfgNode, file_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Returns a sample as the mapper makes them in evaluation: noise, seen by a camera much like the data's.

    Args:
        cfg: the config; reads DATASETS.FORMAT and INPUT.
        file_size: width and height of the file; None: that of the data.
    """
    width, height = file_size or data_format(cfg).typical_image_size
    limits = tuple(cfg.INPUT.RESIZE_TEST) or None
    size = fitting_size((height, width), limits)
    if cfg.INPUT.AFFINE.ENABLED:
        size = (cfg.INPUT.AFFINE.SIZE[1], cfg.INPUT.AFFINE.SIZE[0])
    cam2img = torch.eye(4)
    cam2img[0, 0] = cam2img[1, 1] = 0.58 * size[1]  # KITTI: 721 px of 1242
    cam2img[0, 2], cam2img[1, 2] = size[1] / 2, size[0] / 2
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "cam2img": cam2img, "sample_id": "noise"}


class Extraction(nn.Module):
    """A monocular detector's forward pass from normalised images to maps: what is traced."""

    def __init__(self, model: MonoDetector, inputs: MonoInputs) -> None:
        """Wrap a detector.

        Args:
            model: the detector.
            inputs: calibration and sizes of the images that will be given.
        """
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, 3, H, W) to everything that comes of them: what leads to no output is not in a trace."""
        knowledge = self.model.extract(dataclasses.replace(self.inputs, images=images))
        # These two depend on no pixel, and a trace refuses such outputs.
        return tuple(tensors_of(dataclasses.replace(knowledge, image_sizes=None, grid=None)))


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yields every tensor inside nested data classes, mappings, lists and tuples.

    Args:
        value: anything; what is none of these, such as a number or None, yields nothing.
    """
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_of(entry)


def deform_conv_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts the operations of torchvision's deformable convolution; fvcore's handle of it.

    Every output takes a multiply-add per weight of its filter; every column gathers C kh kw values,
    each four multiply-adds of bilinear sampling.

    Args:
        inputs: of the traced node; the first two are the images (N, C, H, W) and the filters (C', C
            / groups, kh, kw).
        outputs: of the node; the first is (N, C', H', W').

    Returns:
        Multiply-adds.
    """
    image, weight, out = (value.type().sizes() for value in (*inputs[:2], outputs[0]))
    cells = out[0] * prod(out[2:])
    flops: int = cells * prod(weight) + 4 * cells * image[1] * prod(weight[2:])
    return flops


@torch.no_grad()
def count_flops(model: MonoDetector, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Counts the multiply-adds of one image.

    Args:
        model: on the CPU, in eval mode; its random weights run once.
        sample: the image.

    Returns:
        ``image_size``, ``flops`` by part and ``not_counted``, as :func:`analyze_detector`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # fvcore's use
        from fvcore.nn import FlopCountAnalysis
    inputs = model.preprocess([sample])
    analysis = FlopCountAnalysis(Extraction(model, inputs), (inputs.images,))
    analysis.set_op_handle("torchvision::deform_conv2d", deform_conv_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    total, by_module = int(analysis.total()), analysis.by_module()
    flops = {PARTS.get(name, name): int(by_module[f"model.{name}"]) for name, _ in model.named_children()}
    flops = {part: number for part, number in flops.items() if number}
    return {
        "image_size": [inputs.padded_size[1], inputs.padded_size[0]],
        "flops": {**flops, "others": total - sum(flops.values()), "total": total},
        "not_counted": dict(sorted(analysis.unsupported_ops().items())),
    }


def median_seconds(model: MonoDetector, sample: dict[str, Any], passes: int) -> float:
    """Times whole forward passes in evaluation, from the image in memory to boxes.

    Args:
        model: in eval mode.
        sample: of the mapper.
        passes: how many are timed, after :data:`WARM_UP` that are not.

    Returns:
        The median in seconds.
    """
    seconds = []
    for _ in range(WARM_UP + passes):
        start = time.perf_counter()
        model([sample])
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def text(report: Mapping[str, Any]) -> str:
    """Returns what is printed: the parts of every model, and the methods' adapters.

    Args:
        report: as :func:`analyze` returns it.
    """
    lines = []
    for role, model in report["models"].items():
        lines += [*_lines_of(role, model), ""]
    for name, number in report.get("adapters", {}).items():
        lines.append(f"adapters of {name}: {number:,} parameters")
    return "\n".join(lines).rstrip()


def _lines_of(role: str, model: Mapping[str, Any]) -> list[str]:
    flops = model.get("flops", {})
    image = f", an image of {' x '.join(map(str, model['image_size']))} with its padding" if flops else ""
    counts = {**dict.fromkeys(flops, 0), **model["parameters"]}
    last = ("others", "total")
    parts = [*(part for part in counts if part not in last), *(part for part in last if part in counts)]
    rows = [
        [part, f"{counts[part] / 1e6:.2f}", f"{flops[part] / 1e9:.2f}" if part in flops else ""]
        for part in parts
    ]
    header = ["part", "parameters (M)", "FLOPs (G)"]
    lines = [f"{role}: {model['architecture']}{image}"]
    lines.append(tabulate(rows, header, disable_numparse=True, colalign=("left", "right", "right")))
    if not flops:
        lines.append("FLOPs: not counted; they are of monocular detectors only, without --parameters-only")
    elif model["not_counted"]:
        lines.append("not counted: " + ", ".join(f"{op} ({n})" for op, n in model["not_counted"].items()))
    if "seconds" in model:
        threads = f", {torch.get_num_threads()} thread(s)" if model["device"] == "cpu" else ""
        lines.append(f"{model['seconds']:.4f} s an image, median, on {model['device']}{threads}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    args = parse_args(argv)
    cfg = load_args(args)
    report = analyze(cfg, file_size=args.image_size, passes=args.time, flops=not args.parameters_only)
    report = {"config": args.config_file, "options": args.opts, **report}
    print(text(report))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0
