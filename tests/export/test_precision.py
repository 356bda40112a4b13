"""Files of lower precision: which nodes are converted, and how far their numbers are from float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd2.config import load_config
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.export import calibration_samples, to_float16, to_int8
from bevkd2.ops.onnx_export import MODULE_KEY
from bevkd2.runtime.checksum import CHECKSUM_KEY, check, seal
from bevkd2.runtime.graph import METADATA_KEY

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install bevkd2[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RANDOM = np.random.default_rng(0)
POSITION = np.float32([1234.567])
FEEDS = [
    {"images": RANDOM.uniform(-1, 1, (1, 3, 12, 16)).astype(np.float32), "position": POSITION}
    for _ in range(4)
]


@pytest.fixture
def float32(tmp_path: Path) -> Path:
    """A backbone of two convolutions with a residual, and a head of one, as the exporter writes them."""
    helper, nodes, weights = onnx.helper, [], []

    def node(operator: str, inputs: list[str], output: str, module: str, **attributes: Any) -> None:
        made = helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes)
        scopes = ["", *([module] if module else []), output]
        made.metadata_props.add(key=MODULE_KEY, value=repr(scopes))
        nodes.append(made)

    def conv(source: str, output: str, module: str, channels: tuple[int, int]) -> None:
        weight = RANDOM.normal(0, 0.3, (*channels, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"{module}.weight"))
        node("Conv", [source, f"{module}.weight"], output, module, pads=[1, 1, 1, 1])

    conv("images", "c1", "detector.image_backbone.conv1", (8, 3))
    node("Relu", ["c1"], "r1", "detector.image_backbone")
    conv("r1", "c2", "detector.image_backbone.conv2", (8, 8))
    node("Add", ["c2", "r1"], "sum", "detector.image_backbone")
    conv("sum", "logits", "detector.head.out", (2, 8))
    node("Sigmoid", ["logits"], "scores", "")
    node("Add", ["position", "step"], "there", "")
    node("Add", ["there", "step"], "moved", "")
    weights.append(onnx.numpy_helper.from_array(np.float32([0.001]), "step"))
    kind, shape = onnx.TensorProto.FLOAT, [None, 3, 12, 16]
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("images", kind, shape),
            helper.make_tensor_value_info("position", kind, [None]),
        ],
        [
            helper.make_tensor_value_info("scores", kind, [None, 2, 12, 16]),
            helper.make_tensor_value_info("moved", kind, [None]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps({"classes": ["car"]}))
    path = tmp_path / "float32.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    seal(path)
    return path


def scores(path: Path) -> np.ndarray:
    """The scores of all frames; what is outside of the modules is exact, and the checksum is right."""
    check(path)
    assert [entry.key for entry in onnx.load(path).metadata_props].count(CHECKSUM_KEY) == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [session.run(["scores", "moved"], feeds) for feeds in FEEDS]
    assert all(moved == POSITION + np.float32(0.001) + np.float32(0.001) for _, moved in outputs)
    return np.concatenate([scores for scores, _ in outputs])


def description(model: Any) -> dict[str, Any]:
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))


def kinds(model: Any) -> dict[str, int]:
    """Type of every weight by the name of its module."""
    return {
        tensor.name.partition(".weight")[0]: tensor.data_type
        for tensor in model.graph.initializer
        if len(tensor.dims) == 4
    }


def test_int8_is_in_the_named_modules_alone(float32: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    to_int8(float32, path, iter(FEEDS))
    model = onnx.load(path)
    types = onnx.TensorProto
    assert kinds(model) == {
        "detector.image_backbone.conv1": types.INT8,
        "detector.image_backbone.conv2": types.INT8,
        "detector.head.out": types.FLOAT,
    }
    assert {node.domain for node in model.graph.node} == {""} and model.opset_import[0].version == 20
    assert description(model) == {
        "classes": ["car"],
        "precision": {
            "type": "int8",
            "modules": [r"^detector\.(image_backbone|neck)\b"],
            "operators": ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"],
            "calibration_frames": 4,
            "reduce_range": False,
        },
    }
    difference = np.abs(scores(path) - scores(float32))
    assert 0 < difference.max() < 0.1 and difference.mean() < 0.01


def test_ranges_come_from_the_frames(float32: Path, tmp_path: Path) -> None:
    """What is beyond the largest value of the calibration is cut off."""
    path = tmp_path / "int8.onnx"
    to_int8(float32, path, iter([{**feeds, "images": feeds["images"] / 10} for feeds in FEEDS]))
    assert np.abs(scores(path) - scores(float32)).max() > 0.3


def test_float16_is_in_the_named_modules_alone(float32: Path, tmp_path: Path) -> None:
    path = tmp_path / "float16.onnx"
    to_float16(float32, path)
    model = onnx.load(path)
    types = onnx.TensorProto
    assert kinds(model) == {
        "detector.image_backbone.conv1": types.FLOAT16,
        "detector.image_backbone.conv2": types.FLOAT16,
        "detector.head.out": types.FLOAT,
    }
    assert {node.domain for node in model.graph.node} == {""} and model.opset_import[0].version == 20
    assert description(model)["precision"]["type"] == "float16"
    assert model.graph.input[0].type.tensor_type.elem_type == types.FLOAT
    casts = [node.output[0] for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 4, casts  # into the backbone and out of it, and one that names each output
    difference = np.abs(scores(path) - scores(float32))
    assert 0 < difference.max() < 1e-2


def test_other_modules_and_operators(float32: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    to_int8(float32, path, iter(FEEDS), modules=[r"\.head\b"], operators=["Conv"])
    assert kinds(onnx.load(path))["detector.head.out"] == onnx.TensorProto.INT8
    with pytest.raises(ValueError, match=r"matches tail, of detector\.head, detector\.image_backbone; name"):
        to_float16(float32, path, modules=["tail"])
    with pytest.raises(ValueError, match=r"no MatMul lies in a module that matches head"):
        to_int8(float32, path, iter(FEEDS), modules=["head"], operators=["MatMul"])


def test_calibration_reads_whole_scenes_spread_over_the_split(tmp_path: Path) -> None:
    settings = WorldConfig(num_train_scenes=4, num_val_scenes=0, frames_per_scene=2)
    generate(settings, tmp_path, workers=1, progress=False)
    options = ["MODEL.DEVICE", "cpu", "DATASETS.ROOT", str(tmp_path)]
    cfg = load_config("configs/demo/student.yaml", options)
    scenes = [sample["scene_token"] for sample in calibration_samples(cfg, 8)]
    assert scenes == [scene for scene in dict.fromkeys(scenes) for _ in range(2)]
    spread = [sample["scene_token"] for sample in calibration_samples(cfg, 3)]
    assert spread == [scenes[0], scenes[0], scenes[4]]
    assert len(list(calibration_samples(cfg, 100))) == 8
    with pytest.raises(ValueError, match=r"--calibration-frames is 0, expected 1 at least"):
        next(calibration_samples(cfg, 0))
