"""Exported models: a small valid one, how it is read, and what is right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from bevkd2.runtime import load, seal
from bevkd2.runtime.checksum import CHECKSUM_KEY
from bevkd2.runtime.graph import FORMAT, METADATA_KEY
from tests.fuzz.validity import Result

_CLASSES = ("Pedestrian", "Cyclist", "Car")
_SIDE, _OBJECTS = 8, 4
_PORTS = {
    "inputs": {
        "images": ("uint8", [3, _SIDE, _SIDE]),
        "image_sizes": ("float32", [2]),
        "cam2img": ("float32", [4, 4]),
    },
    "outputs": {"boxes": ("float32", [_OBJECTS, 7]), "scores": ("float32", [_OBJECTS, len(_CLASSES)])},
}


def write_exported(folder: Path) -> None:
    """A monocular detector of two matrices, with all that the runtime reads of a real one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    pixels, node = 3 * _SIDE * _SIDE, helper.make_node
    constants = {
        "to_boxes": rng.normal(scale=0.01, size=(pixels, _OBJECTS * 7)).astype(np.float32),
        "to_scores": rng.normal(scale=0.001, size=(pixels, _OBJECTS * len(_CLASSES))).astype(np.float32),
        "rows": np.array([-1, pixels]),
        "of_boxes": np.array([-1, _OBJECTS, 7]),
        "of_scores": np.array([-1, _OBJECTS, len(_CLASSES)]),
    }
    nodes = [
        node("Cast", ["images"], ["floating"], to=TensorProto.FLOAT),
        node("Reshape", ["floating", "rows"], ["flat"]),
        node("MatMul", ["flat", "to_boxes"], ["box_numbers"]),
        node("Reshape", ["box_numbers", "of_boxes"], ["boxes"]),
        node("MatMul", ["flat", "to_scores"], ["logits"]),
        node("Reshape", ["logits", "of_scores"], ["rows_of_logits"]),
        node("Sigmoid", ["rows_of_logits"], ["scores"]),
    ]
    types = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    ends = [
        [
            helper.make_tensor_value_info(name, types[dtype], ["batch", *shape])
            for name, (dtype, shape) in ports.items()
        ]
        for ports in _PORTS.values()
    ]
    graph = helper.make_graph(
        nodes, "student", *ends, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    description = {
        "format": FORMAT,
        "kind": "mono",
        "bevkd2_version": "0",
        "classes": list(_CLASSES),
        "score_threshold": 0.1,
        "nms_threshold": 0.5,
        "nms_inclusive": False,
        "max_detections": 3,
        **{
            end: [
                {"name": name, "dtype": dtype, "shape": shape, "meaning": name}
                for name, (dtype, shape) in ports.items()
            ]
            for end, ports in _PORTS.items()
        },
    }
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(description)})
    onnx.save(model, folder / "student.onnx")
    seal(folder / "student.onnx")


def read_exported(folder: Path) -> Result:
    runtime = load(folder / "student.onnx", threads=1)
    image = np.random.default_rng(1).integers(0, 256, (3, _SIDE, _SIDE), dtype=np.uint8)
    return {"found": vars(runtime.detect(image, np.eye(4))), "classes": runtime.description["classes"]}


def is_sealed(_: bytes, new: bytes) -> bool:
    """Whether the checksum at the end is right: then somebody has meant what it says."""
    length = len(CHECKSUM_KEY) + 2 * 32
    return hashlib.sha256(new[: -(length + 6)]).hexdigest().encode() == new[-64:]
