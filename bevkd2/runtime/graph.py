"""An exported file: its session, its description, and the check of what is fed to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

METADATA_KEY = "bevkd2"
"""Entry of the file's metadata whose value is the description, in JSON."""
FORMAT = 1
"""Version of the description; a file of another one is refused."""

Array = npt.NDArray[Any]
RuntimeT = TypeVar("RuntimeT")

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
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        """Opens the file.

        Args:
            path: an ``.onnx`` file of ``bevkd2 export``.
            providers: of ONNX Runtime, in order of preference.
            threads: within an operator; 0: as many as there are cores.

        Raises:
            ImportError: onnxruntime is not installed.
            FileNotFoundError: there is no such file.
            ValueError: it is no ONNX file, or was not written by ``bevkd2 export``.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist; `bevkd2 export` writes such a file")
        self._session = _open(self.path, providers, threads)
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(
                f"{path} has no metadata {METADATA_KEY!r}, so what its numbers mean is unknown; write the "
                "file with `bevkd2 export`"
            )
        self.description: dict[str, Any] = json.loads(text)
        if self.description.get("format") != FORMAT:
            raise ValueError(
                f"{path} has the format {self.description.get('format')!r}, expected {FORMAT}: it was "
                f"exported by bevkd2 {self.description.get('bevkd2_version')}; export it again"
            )
        self._inputs = {port["name"]: port for port in self.description["inputs"]}
        self._outputs = [port["name"] for port in self.description["outputs"]]

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
            ValueError: an input is missing, unknown, or of another shape or type.
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
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


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
    graph = Graph(path, **options)
    kind = graph.description["kind"]
    if kind not in RUNTIMES:
        raise ValueError(
            f"{path} is of the kind {kind!r}, expected one of {sorted(RUNTIMES)}; run it with "
            "bevkd2.runtime.Graph, or add a class of your own to bevkd2.runtime.graph.RUNTIMES"
        )
    return RUNTIMES[kind](graph)


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


def _open(path: Path, providers: Sequence[str], threads: int) -> Any:
    """Opens a session of ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if absent:
        raise ValueError(
            f"ONNX Runtime has no {', '.join(absent)} here, expected providers among "
            f"{', '.join(onnxruntime.get_available_providers())}"
        )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # its classes have no public base
        if type(error).__module__.startswith("onnxruntime"):
            raise ValueError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
        raise
