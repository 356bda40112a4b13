"""Exported files run in ONNX Runtime as the deployable form does in PyTorch, for any batch."""

from __future__ import annotations

import json
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
from bevkd2.export.model import OPSET
from bevkd2.modeling import Detector
from bevkd2.ops.onnx_export import MODULE_KEY
from bevkd2.runtime import Graph, MonoRuntime, MultiViewRuntime, load
from tests.modeling.conftest import HEIGHT, WIDTH, tiny_cfg

__all__ = ["tiny_cfg"]  # a fixture

MONO = "configs/demo_mono/student.yaml"


@pytest.fixture
def onnx_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install bevkd2[export]")


def exported(cfg: CfgNode, size: tuple[int, int], path: Path) -> Detector[Any, Any, Any]:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    export_detector(cfg, model, [path], image_size=size)
    return model


def assert_graph_equals_the_form(path: Path, model: Detector[Any, Any, Any], inputs: Any) -> None:
    import onnx

    written = onnx.load(path)
    assert {node.domain for node in written.graph.node} == {""} and not written.functions
    assert {entry.key for node in written.graph.node for entry in node.metadata_props} == {MODULE_KEY}
    assert [(opset.domain, opset.version) for opset in written.opset_import] == [("", OPSET)]
    form = model.deployable(tuple(Graph(path).description["inputs"][0]["shape"][-2:])).eval()
    with torch.no_grad():
        expected = form(*inputs)
    names = [port.name for port in form.inputs]
    outputs = Graph(path).run({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    wanted = {port.name: tensor for port, tensor in zip(form.outputs, expected, strict=True)}
    found = {name: torch.from_numpy(output) for name, output in outputs.items()}
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-6)
    rows = in_a_certain_order(wanted["scores"])
    assert rows.float().mean() > 0.2
    for name in wanted.keys() - {"scores", "bev"}:
        torch.testing.assert_close(found[name][rows], wanted[name][rows], rtol=1e-4, atol=1e-4)
    if "bev" in wanted:
        torch.testing.assert_close(found["bev"], wanted["bev"], rtol=1e-4, atol=1e-4)


def in_a_certain_order(scores: torch.Tensor) -> torch.Tensor:
    """Which rows (B, M) rounding cannot exchange: the scores before and after are not almost the same."""
    if scores.ndim == 3:  # of all classes, in the order of the locations
        return torch.ones(scores.shape[:2], dtype=torch.bool)
    apart = -scores.diff(dim=1) > 1e-6
    edge = torch.ones(len(scores), 1, dtype=torch.bool)
    return torch.cat([edge, apart], dim=1) & torch.cat([apart, edge], dim=1)


def test_multi_view(onnx_packages: None, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    bev = tiny_cfg.MODEL.BEVFORMER
    bev.ENCODER_LAYERS, bev.DECODER_LAYERS = 1, 1
    path = tmp_path / "student.onnx"
    model = exported(tiny_cfg, (HEIGHT, WIDTH), path)
    assert isinstance(load(path), MultiViewRuntime)
    for batch in (1, 3):
        inputs = list(model.deployable((HEIGHT, WIDTH)).examples(batch))
        inputs[2][:, 0], inputs[2][:, 16], inputs[2][:, 17] = 2.0, 0.3, 17.0
        inputs[4] = torch.randn_like(inputs[4])
        inputs[5] = torch.arange(batch) % 2 == 0
        assert_graph_equals_the_form(path, model, inputs)


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
