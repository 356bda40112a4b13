"""An exported file: its session, its description, and the check of what is fed to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.runtime.checksum import check

METADATA_KEY = "bevkd2"
"""Entry of the file's metadata whose value is the description, in JSON."""
FORMAT = 1
"""Version of the description; a file of another one is refused."""

_LARGEST = 1e38  # about the largest number of 32 bits

Array = npt.NDArray[Any]

Fields = type | tuple[type, ...]
_FIELDS: dict[str, Fields] = {"kind": str, "classes": list, "inputs": list, "outputs": list}
"""What every description must hold, besides its format."""

RUNTIMES: dict[str, Callable[[Graph], Any]] = {}
"""Makes the object that runs a graph, by the graph's kind."""


@dataclasses.dataclass
class Detections:
    """What was found in one frame or image; k objects."""

    boxes: Array
    """(k, 7 or 9) float32; see the description's ``frame`` and the meaning of its output ``boxes``."""
    scores: Array
    """(k,) float32, in descending order."""
    labels: Array
    """(k,) int64, index into the description's ``classes``."""
    boxes2d: Array | None = None
    """(k, 4) float32 x1, y1, x2, y2 in pixels of the image; None where the model has none."""
    attributes: Array | None = None
    """(k,) int64, index into nuScenes' attributes; None where the model has none."""

    def __len__(self) -> int:
        """Returns k."""
        return len(self.scores)


class Graph:
    """A file of ``bevkd2 export``, ready to run.

    Attributes:
        description: what the export wrote: ``kind``, ``classes``, ``frame``, ``inputs``, ``outputs``,
            ``image_size``, ``normalization``, ``config_digest``, ``bevkd2_version`` and more.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        spinning: bool = True,
    ) -> None:
        """Opens the file.

        Args:
            path: an ``.onnx`` file of ``bevkd2 export``.
            providers: of ONNX Runtime, in order of preference.
            threads: within an operator; 0: as many as there are cores.
            spinning: threads wait for work in a loop, which is faster and keeps their cores busy for a while
                after each run; False where other work shares the cores.

        Raises:
            ImportError: onnxruntime is not installed.
            FileNotFoundError: there is no such file.
            ValueError: it is no ONNX file, was not written by ``bevkd2 export``, or is damaged.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist; `bevkd2 export` writes such a file")
        if self.path.suffix == ".pt2":
            raise ValueError(
                f"{path} is a package of torch.export, expected an .onnx file: read it with "
                "torch.export.load, or write the detector with `bevkd2 export --output NAME.onnx`"
            )
        check(self.path)
        self._session = _open(self.path, providers, threads, spinning)
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(
                f"{path} has no metadata {METADATA_KEY!r}, so what its numbers mean is unknown; write the "
                "file with `bevkd2 export`"
            )
        self.description = _described(text, path)
        self._inputs = {port["name"]: port for port in self.description["inputs"]}
        self._outputs = [port["name"] for port in self.description["outputs"]]
        _check_names("inputs", list(self._inputs), self._session.get_inputs(), path)
        _check_names("outputs", self._outputs, self._session.get_outputs(), path)

    @property
    def image_size(self) -> tuple[int, int]:
        """Returns height and width in pixels of the images that the graph reads."""
        height, width = self._inputs["images"]["shape"][-2:]
        return height, width

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a batch.

        Args:
            feeds: every input by name, batch first; see the description's ``inputs``.

        Returns:
            The outputs by name.

        Raises:
            ValueError: an input is missing, unknown, or of another shape or type, or ONNX Runtime cannot
                compute the graph.
        """
        for name in feeds.keys() ^ self._inputs.keys():
            word = "missing" if name in self._inputs else "unknown"
            raise ValueError(f"{self.path}: the input {name!r} is {word}; expected {list(self._inputs)}")
        for name, port in self._inputs.items():
            value, shape = feeds[name], tuple(port["shape"])
            if value.shape[1:] != shape or str(value.dtype) != port["dtype"]:
                raise ValueError(
                    f"{self.path}: the input {name!r} is {value.dtype} {value.shape}, expected "
                    f"{port['dtype']} {('B', *shape)}: {port['meaning']}"
                )
        with _runtime_errors(f"{self.path} cannot be computed by ONNX Runtime"):
            outputs = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, outputs, strict=True))


def load(path: str | Path, **options: Any) -> Any:
    """Opens a file of ``bevkd2 export`` with the class that runs its kind.

    Args:
        path: the ``.onnx`` file.
        **options: of :class:`Graph`.

    Returns:
        A :class:`bevkd2.runtime.MultiViewRuntime` or :class:`bevkd2.runtime.MonoRuntime`.

    Raises:
        ValueError: the file's kind is unknown; see :class:`Graph` for others.
    """
    return runtime_of(Graph(path, **options))


def runtime_of(graph: Graph) -> Any:
    """Returns the object that runs a graph of its kind.

    Raises:
        ValueError: the graph's kind is unknown.
    """
    kind = graph.description["kind"]
    if kind not in RUNTIMES:
        raise ValueError(
            f"{graph.path} is of the kind {kind!r}, expected one of {sorted(RUNTIMES)}; run it with "
            "bevkd2.runtime.Graph, or add a class of your own to bevkd2.runtime.graph.RUNTIMES"
        )
    return RUNTIMES[kind](graph)


def check_fields(description: Mapping[str, Any], fields: Mapping[str, Fields], path: str | Path) -> None:
    """Checks that a description holds what a runtime reads of it.

    Args:
        description: of a graph.
        fields: the type or types of the value by key.
        path: of the graph, for the message.

    Raises:
        ValueError: a key is missing, or its value is of another type or no finite number.
    """
    for key, kind in fields.items():
        value, kinds = description.get(key), kind if isinstance(kind, tuple) else (kind,)
        mistaken = isinstance(value, bool) and bool not in kinds  # which is an int, too
        if mistaken or not isinstance(value, kind) or (type(value) in (int, float) and not is_finite(value)):
            raise ValueError(
                f"{path}: {key} of the metadata {METADATA_KEY!r} is {value!r:.100}, expected "
                f"{' or '.join(each.__name__ for each in kinds)}"
                f"{', a finite number' if {int, float} & set(kinds) else ''}; export the file again"
            )


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number that 32 bits can hold."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def check_ports(
    description: Mapping[str, Any], inputs: Collection[str], outputs: Collection[str], path: str | Path
) -> None:
    """Checks that a graph has what a runtime feeds and reads.

    Args:
        description: of the graph.
        inputs: names of what is fed, all of them.
        outputs: names of what is read; the graph may have more.
        path: of the graph, for the message.

    Raises:
        ValueError: an input is missing or unknown, or an output is missing.
    """
    for end, names in (("inputs", inputs), ("outputs", outputs)):
        found = {port["name"] for port in description[end]}
        if not found >= set(names) or (end == "inputs" and found != set(names)):
            raise ValueError(
                f"{path}: kind of the metadata {METADATA_KEY!r} is {description['kind']!r}, whose {end} are "
                f"{sorted(names)}, but the graph has {sorted(found)}; export the file again"
            )


def check_scores(scores: Array, path: Path) -> None:
    """Checks that scores are numbers: NaN is above no threshold.

    Args:
        scores: of any shape.
        path: of the graph, for the message.

    Raises:
        ValueError: one is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{path}: scores contain NaN; the weights, or what was fed, are wrong")


def _open(path: Path, providers: Sequence[str], threads: int, spinning: bool) -> Any:
    """Opens a session of ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3
    absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if absent:
        raise ValueError(
            f"ONNX Runtime has no {', '.join(absent)} here, expected providers among "
            f"{', '.join(onnxruntime.get_available_providers())}"
        )
    with _runtime_errors(f"{path} cannot be opened by ONNX Runtime"):
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


@contextlib.contextmanager
def _runtime_errors(what: str) -> Iterator[None]:
    """Raises ONNX Runtime's errors, whose classes have no public base, as a ValueError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise ValueError(f"{what}: {error}") from error
        raise


def _described(text: str, path: str | Path) -> dict[str, Any]:
    """The description of a file, checked as far as this package reads it."""
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata {METADATA_KEY!r} is no JSON: {error}") from error
    if not isinstance(description, dict):
        description = {"format": description}
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {description.get('format')!r:.100}, expected {FORMAT}: it was exported "
            f"by bevkd2 {description.get('bevkd2_version')!s:.100}; export it again"
        )
    check_fields(description, _FIELDS, path)
    for key in ("inputs", "outputs"):
        for port in description[key]:
            if not _is_port(port):
                raise ValueError(
                    f"{path}: an entry of {key} of the metadata {METADATA_KEY!r} is {port!r:.100}, expected "
                    "name, shape, dtype and meaning; export the file again"
                )
    return description


def _is_port(port: Any) -> bool:
    return (
        isinstance(port, dict)
        and all(isinstance(port.get(key), str) for key in ("name", "dtype", "meaning"))
        and isinstance(port.get("shape"), list)
        and all(type(size) is int and size >= 0 for size in port["shape"])
    )


def _check_names(what: str, described: list[str], actual: Sequence[Any], path: str | Path) -> None:
    names = [port.name for port in actual]
    if sorted(described) != sorted(names):
        raise ValueError(
            f"{path}: the graph's {what} are {names}, its metadata {METADATA_KEY!r} describes {described}; "
            "export the file again"
        )
