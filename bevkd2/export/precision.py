"""ONNX files of lower precision, made of a float32 one: float16, and int8 by static quantisation.

What is converted is decided by the names of the detector's modules, which the exporter writes beside every
node; ``benchmarks/lower_precision.py`` scores the defaults and other choices.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bevkd2.ops.onnx_export import MODULE_KEY
from bevkd2.runtime.checksum import CHECKSUM_KEY, seal
from bevkd2.runtime.graph import METADATA_KEY, Array

if TYPE_CHECKING:
    import onnx

CONVERTED_MODULES = (r"^detector\.(image_backbone|neck)\b",)
"""Modules whose nodes are converted, as regular expressions."""
INT8_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool")
"""Operators that are quantised in these modules: those with weights, and those between two of them."""


def module_of(node: onnx.NodeProto) -> str:
    """Returns the module that a node of a ``bevkd2 export`` file computes, such as ``detector.neck.convs.0``.

    Args:
        node: of the file.

    Returns:
        The module's name in the deployable form; empty for what is in none.
    """
    for entry in node.metadata_props:
        if entry.key == MODULE_KEY:
            scopes = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def nodes_in(model: onnx.ModelProto, modules: Sequence[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that lie in modules.

    Args:
        model: the file.
        modules: regular expressions, searched for in the module's name.

    Raises:
        ValueError: there are none.
    """
    found = [node for node in model.graph.node if any(re.search(m, module_of(node)) for m in modules)]
    if not found:
        names = filter(None, map(module_of, model.graph.node))
        parts = sorted({".".join(name.split(".")[:2]) for name in names})
        raise ValueError(
            f"no node lies in a module that matches {' or '.join(modules)}, of {', '.join(parts)}; name "
            "others (--convert REGEX)"
        )
    return found


def to_float16(source: Path, target: Path, *, modules: Sequence[str] = CONVERTED_MODULES) -> None:
    """Writes a file whose modules compute, and keep their weights, in float16.

    Inputs, outputs and everything outside of the modules stay as they are.

    Args:
        source: a float32 file of ``bevkd2 export``.
        target: file to write.
        modules: regular expressions, searched for in the names of modules.

    Raises:
        ImportError: onnxruntime is not installed, or has no converter.
        ValueError: no node lies in such a module.
    """
    check_tools("float16")
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    names = {node.name for node in model.graph.node}
    others = sorted(names - {node.name for node in nodes_in(model, modules)})
    halved = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=[], node_block_list=others, disable_shape_infer=True
    )
    _remove_roundings(halved.graph, names)
    _save(halved, target, {"precision": {"type": "float16", "modules": list(modules)}})


def to_int8(
    source: Path,
    target: Path,
    feeds: Iterator[dict[str, Array]],
    *,
    modules: Sequence[str] = CONVERTED_MODULES,
    operators: Sequence[str] = INT8_OPERATORS,
    reduce_range: bool = False,
) -> None:
    """Writes a file with pairs of QuantizeLinear and DequantizeLinear around what computes in int8.

    Activations are uint8 between the least and the largest value seen, weights int8 per channel.

    Args:
        source: a float32 file of ``bevkd2 export``.
        target: file to write.
        feeds: the graph's inputs on training frames (:func:`bevkd2.export.calibration_feeds`).
        modules: regular expressions, searched for in the names of modules.
        operators: those that are quantised in these modules.
        reduce_range: weights of 7 bits, for processors with AVX2 but without VNNI, where sums of products of
            8 bits saturate.

    Raises:
        ImportError: onnxruntime is not installed, or has no quantisation.
        ValueError: there is no such operator in such a module.
    """
    check_tools("int8")
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    names = [node.name for node in nodes_in(model, modules) if node.op_type in operators]
    if not names:
        raise ValueError(f"no {', '.join(operators)} lies in a module that matches {' or '.join(modules)}")
    reader = _Reader(feeds)
    with _quiet():
        quantize_static(
            model,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            nodes_to_quantize=names,
        )
    precision = {
        "type": "int8",
        "modules": list(modules),
        "operators": list(operators),
        "calibration_frames": reader.frames,
        "reduce_range": reduce_range,
    }
    _save(onnx.load(target), target, {"precision": precision})


def check_tools(precision: str) -> None:
    """Checks that what converts files is installed.

    Args:
        precision: "int8", which needs onnxruntime's quantization, or "float16".

    Raises:
        ImportError: it is not, or this onnxruntime lacks it; the message says what to install.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{precision} needs {' and '.join(missing)}, not installed: pip install 'bevkd2[export]'"
        )
    module = "onnxruntime.quantization" if precision == "int8" else "onnxruntime.transformers.float16"
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{precision} needs {module}, which this onnxruntime lacks ({error}); a build from source may: "
            "pip install 'onnxruntime>=1.20'"
        ) from error


def _remove_roundings(graph: onnx.GraphProto, original: set[str]) -> None:
    """Removes pairs of casts, to float16 and back, which the converter puts between nodes of float32.

    Args:
        graph: ``onnx.GraphProto``.
        original: names of the nodes that the converter did not add.
    """
    casts = {
        node.output[0]: (node.input[0], node.attribute[0].i)
        for node in graph.node
        if node.op_type == "Cast" and node.name not in original
    }
    half, full = 10, 1  # onnx.TensorProto.FLOAT16 and .FLOAT

    def unrounded(name: str) -> str:
        while name in casts and casts[name][1] == full and casts.get(casts[name][0], ("", full))[1] == half:
            name = casts[casts[name][0]][0]
        return name

    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = unrounded(name)
        if node.output[0] in outputs and (source := unrounded(node.output[0])) != node.output[0]:
            node.input[0] = source  # the cast stays, from float32 to float32, for the output's name
    _remove_unread_casts(graph, set(casts) - outputs)
    del graph.value_info[:]


def _remove_unread_casts(graph: onnx.GraphProto, casts: set[str]) -> None:
    """Removes the nodes of ``casts``, outputs of casts, that no node reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input}
        unread = [node for node in graph.node if node.output[0] in casts - read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


class _Reader:
    """What onnxruntime's calibration reads; duck-typed as ``CalibrationDataReader``."""

    def __init__(self, feeds: Iterator[dict[str, Array]]) -> None:
        self._feeds, self.frames = feeds, 0

    def get_next(self) -> dict[str, Array] | None:
        """Returns the next inputs; None at the end."""
        feeds = next(self._feeds, None)
        self.frames += feeds is not None
        return feeds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides onnxruntime's advice to fuse the graph first, which the exporter has done."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


def _save(model: onnx.ModelProto, path: Path, more: dict[str, Any]) -> None:
    """Writes a model whose description has more entries, with a checksum of its own."""
    import onnx

    entries = {entry.key: entry for entry in model.metadata_props}
    description = entries[METADATA_KEY]
    description.value = json.dumps({**json.loads(description.value), **more})
    if CHECKSUM_KEY in entries:  # that of the float32 file
        model.metadata_props.remove(entries[CHECKSUM_KEY])
    onnx.save(model, path)
    seal(path)
