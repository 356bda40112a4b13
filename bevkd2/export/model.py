"""From a config and its weights to a file that runs without bevkd2's detectors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

import bevkd2
from bevkd2.checkpoint import Checkpointer
from bevkd2.config import CfgNode, class_names, fixed_classes, stored_classes
from bevkd2.d2 import build_model
from bevkd2.data.format import data_format, load_dataset
from bevkd2.data.mono.transforms import fitting_size
from bevkd2.data.transforms import scaled_size
from bevkd2.distill import is_distillation, student_config
from bevkd2.modeling import DeployableDetector, Detector, Port
from bevkd2.ops.onnx_export import onnx_decompositions, write_onnx
from bevkd2.runtime import seal
from bevkd2.runtime.graph import FORMAT, METADATA_KEY

_logger = logging.getLogger(__name__)

SUFFIXES = (".onnx", ".pt2")
OPSET = 20
"""Opset of the files by default; GridSample needs 16, deformable convolution 19."""
LEAST_OPSET = 18

# torch.export takes a size of 1 for a constant, and one that happens to be equal to another (a stride, the
# number of heads) for the same.
_TRACED_BATCH = 5
_NOT_OF_THE_MODEL = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "OUTPUT_DIR", "DATASETS.ROOT")


def load_student(cfg: CfgNode, weights: str = "") -> tuple[CfgNode, Detector[Any, Any, Any]]:
    """Builds the model of a config, of a distillation its student, with trained weights.

    Args:
        cfg: the config.
        weights: a checkpoint; empty: MODEL.WEIGHTS.

    Returns:
        The config of the model alone, and the model on the CPU in eval mode.

    Raises:
        ValueError: no weights are named, they were trained on other classes, or the model is no detector of
            bevkd2.
        FileNotFoundError: there is no such file.
    """
    distilled = is_distillation(cfg)
    cfg = student_config(cfg) if distilled else cfg.clone()
    cfg.defrost()
    path = weights or cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError(
            "no weights: add --weights FILE (the training writes OUTPUT_DIR/model_final.pth), or set "
            "MODEL.WEIGHTS" + ("; the student is exported, not its teacher" if distilled else "")
        )
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    if not isinstance(model, Detector):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which is no "
            "bevkd2.modeling.Detector and so has no deployable form to export (docs/deployment.md)"
        )
    checkpointer = Checkpointer(model, classes=stored_classes(cfg), fixed_classes=fixed_classes(cfg))
    checkpointer.load(path, checkpointables=[])
    return cfg, model.eval()


def image_size_of(cfg: CfgNode, file_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns height and width of the images that a model gets in evaluation.

    Args:
        cfg: the model's config; reads INPUT, and DATASETS where the size is asked of the data.
        file_size: width and height of the image files; None: those of the first split of DATASETS.TEST (the
            largest, of single images), or where it is not there, the data's usual size, which is logged.
    """
    form = data_format(cfg)
    if form.single_images and cfg.INPUT.AFFINE.ENABLED:
        width, height = cfg.INPUT.AFFINE.SIZE
        return height, width
    if file_size is None:
        try:
            index = load_dataset(cfg, cfg.DATASETS.TEST[0])
        except (FileNotFoundError, IndexError):
            file_size = form.typical_image_size
            _logger.warning(
                "no data in DATASETS.ROOT %s: the graph is for the images of %s, %d x %d; --image-size names "
                "another size",
                cfg.DATASETS.ROOT,
                form.name,
                *file_size,
            )
        else:
            mapper = form.mapper(cfg, is_train=False)
            frames = range(len(index)) if form.single_images else range(1)
            heights, widths = zip(*(mapper.cached_shape(index, i)[-2:] for i in frames), strict=True)
            return max(heights), max(widths)
    size = (file_size[1], file_size[0])
    if form.single_images:
        return fitting_size(size, tuple(cfg.INPUT.RESIZE_TEST) or None)
    return scaled_size(size, cfg.INPUT.IMAGE_SCALE)


def describe(cfg: CfgNode, deployable: DeployableDetector, model: Detector[Any, Any, Any]) -> dict[str, Any]:
    """Returns what a file says of itself, as what JSON can hold.

    Args:
        cfg: the model's config.
        deployable: the model's form that is exported.
        model: the model.
    """
    bare = cfg.clone()
    bare.defrost()
    bare.merge_from_list([word for key in _NOT_OF_THE_MODEL for word in (key, "")])
    inp = cfg.INPUT
    description: dict[str, Any] = {
        "format": FORMAT,
        "kind": deployable.kind,
        "architecture": type(model).__name__,
        "bevkd2_version": bevkd2.__version__,
        "torch_version": torch.__version__,
        "config_digest": hashlib.sha256(bare.dump().encode()).hexdigest(),
        "classes": list(class_names(cfg)),
        "units": "metres, radians, metres per second, pixels",
        "inputs": [_port(port) for port in deployable.inputs],
        "outputs": [_port(port) for port in deployable.outputs],
        "normalization": {
            "where": "in the graph",
            "mean": model.pixels.mean.tolist(),
            "std": model.pixels.std.tolist(),
            "pixel_format": model.pixels.pixel_format,
            "size_divisibility": model.pixels.size_divisibility,
        },
        **deployable.description(),
    }
    if data_format(cfg).single_images:
        description["resize"] = {"fit": list(inp.RESIZE_TEST), "affine": inp.AFFINE.ENABLED}
    else:
        description["resize"] = {"scale": inp.IMAGE_SCALE}
        description["cameras"] = list(inp.CAMERAS)
    return description


def export_detector(
    cfg: CfgNode,
    model: Detector[Any, Any, Any],
    paths: list[Path],
    *,
    image_size: tuple[int, int],
    opset: int = OPSET,
) -> dict[str, Any]:
    """Writes a detector's deployable form, traced once, to one or more files.

    Args:
        cfg: the model's config.
        model: in eval mode.
        paths: what to write, ``.onnx`` or ``.pt2``.
        image_size: height and width of the images.
        opset: of ONNX files.

    Returns:
        The description that the files hold.

    Raises:
        ImportError: a package that ONNX files need is not installed.
        ValueError: a path of another suffix, an opset that is too old, or a detector that has no deployable
            form.
    """
    _check_paths(paths, opset)
    deployable = model.deployable(image_size).eval()
    description = describe(cfg, deployable, model)
    text = json.dumps(description)
    batch = Dim("batch", min=1)
    with torch.no_grad():
        examples = deployable.examples(_TRACED_BATCH)
        program = torch.export.export(
            deployable, examples, dynamic_shapes=tuple({0: batch} for _ in examples)
        ).run_decompositions(onnx_decompositions())
    _check_batch(program)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files={"description.json": text})
        else:
            write_onnx(
                program,
                path,
                input_names=[port.name for port in deployable.inputs],
                output_names=[port.name for port in deployable.outputs],
                opset_version=opset,
                metadata={METADATA_KEY: text},
            )
            seal(path)
    return description


def _check_paths(paths: list[Path], opset: int) -> None:
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"the output {path} has the suffix {path.suffix!r}, expected {' or '.join(SUFFIXES)}"
            )
    if not any(path.suffix == ".onnx" for path in paths):
        return
    if opset < LEAST_OPSET:
        raise ValueError(f"--opset is {opset}, expected {LEAST_OPSET} at least")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} are not installed: pip install 'bevkd2[export]'")


def _check_batch(program: ExportedProgram) -> None:
    """Raises RuntimeError where tracing has made the batch a constant."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta["val"].shape[0], int):
            raise RuntimeError(
                f"the batch of {node.name} became {node.meta['val'].shape[0]} while the graph was traced: "
                "the deployable form or a decomposition depends on it (TORCH_LOGS=dynamic shows where)"
            )


def _port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": str(port.dtype).removeprefix("torch."),
        "meaning": port.meaning,
    }
