"""Exported models: a small valid one of each kind, how it is read, and what is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.runtime import load, seal
from bevkd2.runtime.checksum import CHECKSUM_KEY
from bevkd2.runtime.graph import FORMAT, METADATA_KEY
from tests.fuzz.validity import Result

_CLASSES = ("Pedestrian", "Cyclist", "Car")
_SIDE, _OBJECTS = 8, 4
_CAMERAS, _CELLS, _FRAMES = 2, 6, 2
_Ports = dict[str, dict[str, tuple[str, list[int]]]]
_MONO: _Ports = {
    "inputs": {
        "images": ("uint8", [3, _SIDE, _SIDE]),
        "image_sizes": ("float32", [2]),
        "cam2img": ("float32", [4, 4]),
    },
    "outputs": {"boxes": ("float32", [_OBJECTS, 7]), "scores": ("float32", [_OBJECTS, len(_CLASSES)])},
}
_MULTI_VIEW: _Ports = {
    "inputs": {
        "images": ("uint8", [_CAMERAS, 3, _SIDE, _SIDE]),
        "lidar2img": ("float32", [_CAMERAS, 4, 4]),
        "can_bus": ("float64", [18]),
        "previous_can_bus": ("float64", [18]),
        "previous_bev": ("float32", [_CELLS, 2]),
        "has_previous": ("bool", []),
    },
    "outputs": {
        "boxes": ("float32", [_OBJECTS, 9]),
        "scores": ("float32", [_OBJECTS]),
        "labels": ("int64", [_OBJECTS]),
        "bev": ("float32", [_CELLS, 2]),
    },
}
_PORTS = {"mono": _MONO, "multi_view": _MULTI_VIEW}
_READ = {
    "mono": {"score_threshold": 0.1, "nms_threshold": 0.5, "nms_inclusive": False, "max_detections": 3},
    "multi_view": {
        "score_threshold": 0.1,
        "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        "cameras": ["CAM_FRONT", "CAM_BACK"],
    },
}
"""What the runtime of each kind reads of the description, besides what it reads of all."""


def write_exported(kind: str) -> Callable[[Path], None]:
    """A detector of some matrices, with all that the runtime reads of a real one."""

    def write(folder: Path) -> None:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        ports = _PORTS[kind]
        types = {
            "uint8": TensorProto.UINT8,
            "float32": TensorProto.FLOAT,
            "float64": TensorProto.DOUBLE,
            "int64": TensorProto.INT64,
            "bool": TensorProto.BOOL,
        }
        ends = [
            [
                helper.make_tensor_value_info(name, types[dtype], ["batch", *shape])
                for name, (dtype, shape) in end.items()
            ]
            for end in ports.values()
        ]
        node, (constants, nodes) = helper.make_node, _graph(ports)
        graph = helper.make_graph(
            [node(*arguments, **options) for *arguments, options in nodes],
            "student",
            *ends,
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        description = {
            "format": FORMAT,
            "kind": kind,
            "bevkd2_version": "0",
            "classes": list(_CLASSES),
            **_READ[kind],
            **{
                end: [
                    {"name": name, "dtype": dtype, "shape": shape, "meaning": name}
                    for name, (dtype, shape) in ports[end].items()
                ]
                for end in ports
            },
        }
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {METADATA_KEY: json.dumps(description)})
        onnx.save(model, folder / "student.onnx")
        seal(folder / "student.onnx")

    return write


def _graph(ports: _Ports) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Constants by name, and nodes: operator, inputs, outputs, attributes."""
    rng = np.random.default_rng(0)
    pixels, outputs = int(np.prod(ports["inputs"]["images"][1])), ports["outputs"]
    constants: dict[str, Any] = {"rows": np.array([-1, pixels])}
    nodes: list[tuple[Any, ...]] = [
        ("Cast", ["images"], ["floating"], {"to": 1}),
        ("Reshape", ["floating", "rows"], ["flat"], {}),
    ]
    for name, scale in (("boxes", 0.01), ("scores", 0.001)):
        shape = outputs[name][1]
        constants[f"to_{name}"] = rng.normal(scale=scale, size=(pixels, int(np.prod(shape))))
        constants[f"to_{name}"] = constants[f"to_{name}"].astype(np.float32)
        constants[f"of_{name}"] = np.array([-1, *shape])
        last = name if name == "boxes" else "logits"
        nodes += [
            ("MatMul", ["flat", f"to_{name}"], [f"{name}_numbers"], {}),
            ("Reshape", [f"{name}_numbers", f"of_{name}"], [last], {}),
        ]
    nodes.append(("Sigmoid", ["logits"], ["scores"], {}))
    if "bev" in outputs:
        constants["one"] = np.ones((), dtype=np.float32)
        nodes += [
            ("Add", ["previous_bev", "one"], ["bev"], {}),
            ("Cast", ["scores"], ["labels"], {"to": 7}),
        ]
    return constants, nodes


def read_exported(folder: Path) -> Result:
    runtime = load(folder / "student.onnx", threads=1)
    rng = np.random.default_rng(1)
    if runtime.description["kind"] == "mono":
        image = rng.integers(0, 256, (3, _SIDE, _SIDE), dtype=np.uint8)
        found = [runtime.detect(image, np.eye(4))]
    else:
        images = rng.integers(0, 256, (_FRAMES, _CAMERAS, 3, _SIDE, _SIDE), dtype=np.uint8)
        cameras = np.tile(np.eye(4), (_CAMERAS, 1, 1))
        found = [
            runtime.detect(images[i], cameras, timestamp=500_000 * (i + 1), scene="a", can_bus=np.zeros(18))
            for i in range(_FRAMES)
        ]
    return {"found": [vars(one) for one in found], "classes": runtime.description["classes"]}


def is_sealed(_: bytes, new: bytes) -> bool:
    """Whether the checksum at the end is right: then somebody has meant what it says."""
    length = len(CHECKSUM_KEY) + 2 * 32
    return hashlib.sha256(new[: -(length + 6)]).hexdigest().encode() == new[-64:]
