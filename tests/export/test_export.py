"""Exported files run in ONNX Runtime as the deployable form does in PyTorch, for any batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import save_file
from bevkd2.cli.export import main
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.data.synthetic import KittiWorldConfig, generate
from bevkd2.export import (
    calibration_feeds,
    calibration_samples,
    export_detector,
    image_size_of,
    load_student,
    to_float16,
    to_int8,
)
from bevkd2.modeling import Detector
from bevkd2.runtime import Graph, MonoRuntime, MultiViewRuntime, load
from tests.export.graphs import (
    BOX_BOUND,
    assert_graph_equals_the_form,
    exported,
    in_a_certain_order,
    with_past,
)
from tests.modeling.conftest import HEIGHT, WIDTH, make_frame, tiny_cfg

__all__ = ["make_frame", "tiny_cfg"]  # fixtures

MONO = "configs/demo_mono/student.yaml"


@pytest.fixture
def smaller_cfg(tiny_cfg: CfgNode) -> CfgNode:
    tiny_cfg.MODEL.BEVFORMER.ENCODER_LAYERS, tiny_cfg.MODEL.BEVFORMER.DECODER_LAYERS = 1, 1
    return tiny_cfg


def test_multi_view(onnx_packages: None, smaller_cfg: CfgNode, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    model = exported(smaller_cfg, (HEIGHT, WIDTH), path)
    assert isinstance(load(path), MultiViewRuntime)
    for batch in (1, 3):
        inputs = with_past(list(model.deployable((HEIGHT, WIDTH)).examples(batch)))
        assert_graph_equals_the_form(path, model, inputs)


def test_a_multi_view_package_runs_a_scene(
    smaller_cfg: CfgNode, make_frame: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A .pt2 with its own state finds what the detector does, which keeps the state itself."""
    path, scenes = tmp_path / "student.pt2", ("a", "b")
    model = exported(smaller_cfg, (HEIGHT, WIDTH), path)
    files = {"description.json": ""}
    loaded = torch.export.load(path, extra_files=files)
    assert json.loads(files["description.json"])["kind"] == "multi_view"
    assert not any("bevkd2" in str(node.target) for node in loaded.graph.nodes)
    program, form = loaded.module(), model.deployable((HEIGHT, WIDTH)).eval()
    previous_can_bus, bev = (tensor.clone() for tensor in form.examples(len(scenes))[3:5])
    apart = []
    for step in range(2):
        batch = [make_frame(seed, scene=scene, step=step) for seed, scene in enumerate(scenes)]
        images, lidar2img, can_bus = (
            torch.stack([frame[name] for frame in batch]) for name in ("images", "lidar2img", "can_bus")
        )
        has_previous = torch.full((len(scenes),), step > 0)
        inputs = (images, lidar2img, can_bus, previous_can_bus, bev, has_previous)
        with torch.no_grad():
            expected, without_past = form(*inputs), form(*inputs[:-1], torch.zeros_like(has_previous))
            boxes, scores, labels, bev = program(*inputs)
            detected = model(batch)
        for actual, wanted in ((scores, expected[1]), (bev, expected[3])):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
        rows = in_a_certain_order(expected[1])
        assert torch.equal(labels[rows], expected[2][rows])
        torch.testing.assert_close(boxes[rows], expected[0][rows], rtol=0.0, atol=BOX_BOUND)
        for i, found in enumerate(detected):
            torch.testing.assert_close(scores[i], found["scores"], rtol=1e-4, atol=1e-6)
            ours, theirs = boxes[i][rows[i]], found["boxes"].tensor[rows[i]]
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=BOX_BOUND)
        apart.append((bev - without_past[3]).abs().max().item())
        previous_can_bus = can_bus
    assert apart[0] == pytest.approx(0.0, abs=1e-4) and apart[1] > 0.01


def mono_inputs(model: Detector[Any, Any, Any], batch: int) -> list[torch.Tensor]:
    """Images of different sizes, all but the first one smaller than the graph's."""
    inputs = list(model.deployable((64, 96)).examples(batch))
    inputs[1] = inputs[1] - torch.arange(batch)[:, None]
    return inputs


def test_smoke(onnx_packages: None, tmp_path: Path) -> None:
    cfg = load_config("configs/demo_mono/two_frames_smoke.yaml", ["MODEL.DEVICE", "cpu"])
    path = tmp_path / "student.onnx"
    model = exported(cfg, (64, 96), path)
    assert isinstance(load(path), MonoRuntime)
    for batch in (1, 3):
        assert_graph_equals_the_form(path, model, mono_inputs(model, batch))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Detector[Any, Any, Any]]:
    """A folder with s.onnx and s.pt2 of a distillation's student, written by the command, and the student."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("export")
    cfg, weights = load_config(MONO, ["MODEL.DEVICE", "cpu"]), folder / "student.safetensors"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    save_file({**model.state_dict(), "classes": list(cfg.DATASETS.CLASSES)}, weights)
    words = ["--config-file", "configs/demo_mono/distill.yaml", "--weights", str(weights)]
    words += ["--output", str(folder / "s.pt2"), "--output", str(folder / "s.onnx")]
    assert main([*words, "--image-size", "96x64", "DATASETS.ROOT", str(folder)]) == 0
    return folder, model


def test_the_command_writes_both_kinds_of_files(written: tuple[Path, Detector[Any, Any, Any]]) -> None:
    """The .pt2 runs without bevkd2's ops."""
    folder, model = written
    for batch in (1, 3):
        assert_graph_equals_the_form(folder / "s.onnx", model, mono_inputs(model, batch))
    files = {"description.json": ""}
    program = torch.export.load(folder / "s.pt2", extra_files=files)
    description = json.loads(files["description.json"])
    assert description["classes"] == ["Pedestrian", "Cyclist", "Car"] and description["kind"] == "mono"
    assert load(folder / "s.onnx").description == description
    assert not any("bevkd2" in str(node.target) for node in program.graph.nodes)
    form = model.deployable((64, 96)).eval()
    inputs = form.examples(2)
    with torch.no_grad():
        for actual, expected in zip(program.module()(*inputs), form(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_detector_in_lower_precision(written: tuple[Path, Detector[Any, Any, Any]], tmp_path: Path) -> None:
    """Backbone and neck are converted; the files run as the float32 one does, with scores near its scores."""
    import onnx

    source, model = written[0] / "s.onnx", written[1]
    world = KittiWorldConfig(num_train_frames=2, num_val_frames=0, image_size=(96, 64))
    generate(world, tmp_path / "world", workers=1, progress=False)
    cfg = load_config(MONO, ["MODEL.DEVICE", "cpu", "DATASETS.ROOT", str(tmp_path / "world")])
    to_float16(source, tmp_path / "float16.onnx")
    to_int8(source, tmp_path / "int8.onnx", calibration_feeds(calibration_samples(cfg, 2), source))
    feeds = next(iter(calibration_feeds(calibration_samples(cfg, 1), source)))
    expected = Graph(source).run(feeds)["scores"]
    for name, kind, bound in (
        ("float16", onnx.TensorProto.FLOAT16, 1e-3),
        ("int8", onnx.TensorProto.INT8, 0.1),
    ):
        file = onnx.load(tmp_path / f"{name}.onnx")
        lower = {tensor.name for tensor in file.graph.initializer if tensor.data_type == kind}
        assert {node.domain for node in file.graph.node} == {""}
        for part in (model.image_backbone, model.neck, model.head):
            for module, layer in model.named_modules():
                if isinstance(layer, torch.nn.Conv2d) and layer in part.modules():
                    converted = any(f"detector.{module}.weight" in tensor for tensor in lower)
                    assert converted == (part is not model.head), module
        runner = load(tmp_path / f"{name}.onnx")
        assert isinstance(runner, MonoRuntime) and runner.description["precision"]["type"] == name
        difference = abs(runner.graph.run(feeds)["scores"] - expected)
        assert 0 < difference.max() < bound * expected.max()


def test_sizes_without_data(tmp_path: Path) -> None:
    root = ["DATASETS.ROOT", str(tmp_path / "absent")]
    assert image_size_of(load_config("configs/bevformer/bevformer_tiny.yaml", root)) == (450, 800)
    assert image_size_of(load_config("configs/pgd/pgd_r18_kitti.yaml", root), (1000, 300)) == (373, 1242)
    assert image_size_of(load_config("configs/smoke/smoke_dla34_kitti.yaml", root)) == (384, 1280)


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    cfg = load_config("configs/demo_mono/distill.yaml")
    with pytest.raises(ValueError, match=r"no weights: add --weights FILE.*not its teacher"):
        load_student(cfg)
    with pytest.raises(ValueError, match=r"suffix '\.engine', expected \.onnx or \.pt2"):
        export_detector(cfg, None, [tmp_path / "a.engine"], image_size=(64, 96))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--opset is 11, expected 18"):
        export_detector(cfg, None, [tmp_path / "a.onnx"], image_size=(64, 96), opset=11)  # type: ignore[arg-type]
    words = ["--config-file", MONO, "--weights", "w.pth", "--int8", "--output"]
    with pytest.raises(ValueError, match=r"exclude each other"):
        main([*words, "a.onnx", "--dtype", "float16"])
    with pytest.raises(ValueError, match=r"write one \.onnx file, not a\.pt2"):
        main([*words, "a.pt2"])
    with pytest.raises(ValueError, match=r"write one \.onnx file, not a\.onnx, b\.onnx"):
        main([*words, "a.onnx", "--output", "b.onnx"])
    with pytest.raises(ValueError, match=r"--convert '\[' is no regular expression"):
        main([*words, "a.onnx", "--convert", "["])
    with pytest.raises(ValueError, match=r"--calibration-frames is 0, expected 1 at least"):
        main([*words, "a.onnx", "--calibration-frames", "0"])
    words.remove("--int8")
    for option in (["--convert", "neck"], ["--reduce-range"], ["--calibration-frames", "8"]):
        with pytest.raises(ValueError, match=rf"{option[0]} is an option of --int8"):
            main([*words, "a.onnx", *option])
    with pytest.raises(ValueError, match=r"no deployable form\. Implement its method deployable"):
        Detector.deployable(build_model(load_config(MONO, ["MODEL.DEVICE", "cpu"])), (64, 96))
