"""What a data set brings to bevkd2, in one object, and the registry of these objects.

``DATASETS.FORMAT`` names a :class:`DataFormat`. The built-in formats are in ``bevkd2/data/kitti.py``,
``nuscenes_mono.py`` and ``nuscenes/format.py``; a package of your own registers one in the same way::

    @DATA_FORMAT_REGISTRY.register()
    class MyFormat(MonoFormat):
        name = "mine"
        ...
"""

from __future__ import annotations

import functools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
from fvcore.common.config import CfgNode

from bevkd2.config.data_formats import DATA_FORMAT_REGISTRY, class_names
from bevkd2.config.shipped import expanded, refuse_address
from bevkd2.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog

if TYPE_CHECKING:
    from bevkd2.data.image_cache import ImageCache
    from bevkd2.data.loader import MappedDataset
    from bevkd2.data.stored import StoredFrames
    from bevkd2.data.synthetic.world import SyntheticWorld
    from bevkd2.data.targets import Lacking
    from bevkd2.evaluation.left_out import LeftOutScorer
    from bevkd2.modeling.detector import Detector
    from bevkd2.visualization.objects import Image

__all__ = ["DATA_FORMAT_REGISTRY", "DataFormat", "Mapper", "data_format", "dataset_root", "load_dataset"]

_logger = logging.getLogger(__name__)


class Mapper(Protocol):
    """Makes samples of the frames of an index."""

    def __call__(
        self, index: Any, i: int, rng: np.random.Generator, cache: ImageCache | None = None
    ) -> dict[str, Any]:
        """Returns the sample of frame ``i``; equal generators make equal samples.

        Every sample has ``sample_id`` (str), which names it in errors and figures.
        """

    def cached_shape(self, index: Any, i: int) -> tuple[int, ...]:
        """Returns the shape of what ``cache`` holds of a frame.

        Args:
            index: the data set.
            i: the frame.
        """


class DataFormat(ABC):
    """Everything that bevkd2 needs to know of one kind of data set.

    One object is made when the class is registered; it holds no state, and every method is given the config.
    What the methods call an index is the format's own: an object with a length, which ``load`` returns and
    ``mapper``, ``join`` and ``groups`` read.
    """

    name: ClassVar[str]
    """The value of ``DATASETS.FORMAT``."""
    default_classes: ClassVar[tuple[str, ...]] = ()
    """The classes where ``DATASETS.CLASSES`` is empty, in the order of the labels; ``()``: it must be set."""
    known_classes: ClassVar[tuple[str, ...]] = ()
    """Every name that ``DATASETS.CLASSES`` may hold; ``()``: any name."""
    fixed_classes: ClassVar[bool] = False
    """Whether labels always mean ``default_classes``, so that ``DATASETS.CLASSES`` must be empty."""
    single_images: ClassVar[bool]
    """Whether a sample is one image, for monocular detectors; else it is a frame of several cameras."""
    typical_image_size: ClassVar[tuple[int, int]]
    """Width and height of the files in pixels, usually: what FLOPs are counted with."""

    def add_config(self, cfg: CfgNode) -> None:  # noqa: B027  (a format need not add keys)
        """Adds the keys that the format alone reads, with their defaults.

        Args:
            cfg: the whole config. Keys that several formats share may be there already.
        """

    def dataset_name(self, cfg: CfgNode, split: str) -> str:
        """Returns the name of a split in the catalogs; equal names mean equal data.

        Args:
            cfg: the config; what :meth:`source` reads of it is part of the name.
            split: one of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

        Raises:
            FileNotFoundError: see :func:`dataset_root`.
            ValueError: ``DATASETS.CLASSES`` does not fit the format.
        """
        source = "&".join(f"{key}={value}" for key, value in self.source(cfg).items())
        return f"{self.name}/{split}?{source}"

    def source(self, cfg: CfgNode) -> dict[str, str]:
        """Returns the settings that decide what ``load`` returns, besides the split, by name."""
        return {"root": dataset_root(cfg), "classes": ",".join(class_names(cfg))}

    def register(self, cfg: CfgNode, split: str) -> str:
        """Registers a split in ``DatasetCatalog`` and ``MetadataCatalog``; a second time does nothing.

        ``DatasetCatalog.get`` then loads its index. The metadata are ``thing_classes``, the class names in
        the order of the labels.

        Args:
            cfg: the config.
            split: one of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

        Returns:
            The name of the split in the catalogs.

        Raises:
            FileNotFoundError: ``DATASETS.ROOT`` does not exist.
            ValueError: ``DATASETS.CLASSES`` or the split is wrong for the format.
        """
        name = self.dataset_name(cfg, split)
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(self.load, cfg.clone(), split))
            MetadataCatalog.get(name).set(thing_classes=list(class_names(cfg)))
        return name

    @abstractmethod
    def load(self, cfg: CfgNode, split: str) -> Any:
        """Returns the index of a split.

        Args:
            cfg: the config.
            split: one of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file holds what cannot be.
        """

    @abstractmethod
    def join(self, indices: Sequence[Any]) -> Any:
        """Returns one index of several training splits, one after the other.

        Args:
            indices: of the splits, one or more, as :meth:`load` returns them.
        """

    @abstractmethod
    def groups(self, index: Any) -> list[range]:
        """Returns the frames that one process must evaluate, in order: ``[0, len(index))`` in ranges."""

    def random_settings(self, cfg: CfgNode) -> list[str]:
        """Returns the settings by which a training sample differs from one epoch to the next, as text.

        What is computed of a sample cannot be kept where there is one (``DISTILL.TEACHER.CACHE``).
        """
        return ["INPUT.PHOTOMETRIC: True"] if cfg.INPUT.PHOTOMETRIC else []

    @abstractmethod
    def mapper(self, cfg: CfgNode, *, is_train: bool) -> Mapper:
        """Returns the mapper that makes samples.

        Args:
            cfg: the config; its INPUT says how images are resized and augmented.
            is_train: whether the samples are for training, which are augmented.
        """

    @abstractmethod
    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
        """Returns the evaluator of a split.

        Args:
            cfg: the config.
            split: one of ``DATASETS.TEST``.
            output_dir: where it may write results.
        """

    def lacking(self, cfg: CfgNode, index: Any) -> Lacking:
        """Returns the classes of which a training split has no object to learn from, and why.

        A format that does not say lacks none.

        Args:
            cfg: the config.
            index: of one of ``DATASETS.TRAIN``.
        """
        from bevkd2.data.targets import Lacking

        return Lacking()

    def left_out_scorer(self, cfg: CfgNode, split: str) -> LeftOutScorer:
        """Returns what scores the files of :meth:`evaluator`, and scores them without a part of the split.

        An experiment (``bevkd2 experiment``) needs it, to say how much a score depends on the split.

        Args:
            cfg: the config.
            split: one of ``DATASETS.TEST``.

        Raises:
            ValueError: the format has none.
        """
        raise ValueError(
            f"DATASETS.FORMAT {self.name!r} cannot score a part of a split; an experiment needs it: "
            f"implement {type(self).__name__}.left_out_scorer"
        )

    @abstractmethod
    def figures(
        self,
        cfg: CfgNode,
        dataset: MappedDataset,
        models: Mapping[str, Detector[Any, Any, Any]],
        *,
        num: int,
        sample_ids: Sequence[str] = (),
        score_threshold: float = 0.3,
    ) -> Iterator[tuple[str, dict[str, Image]]]:
        """Draws samples of a split, as ``bevkd2 visualize`` writes them.

        Args:
            cfg: the config.
            dataset: the split.
            models: name -> model in eval mode.
            num: how many samples to draw, spread over the split.
            sample_ids: the ``sample_id`` of those to draw instead.
            score_threshold: least score of a drawn detection.

        Yields:
            The name of the sample, and its pictures by name: (H, W, 3) uint8, RGB.
        """

    def stored_frames(self, cfg: CfgNode, split: str) -> StoredFrames:
        """Returns the frames of a split with their annotations, and the reader of stored detections.

        ``bevkd2 visualize failures`` and ``bevkd2 visualize video`` need it.

        Args:
            cfg: the config.
            split: one of ``DATASETS.TEST``.

        Raises:
            ValueError: the format does not read the detections that its evaluator stores.
        """
        raise ValueError(
            f"DATASETS.FORMAT {self.name!r} does not read stored detections, which failures and videos are "
            f"drawn from; implement {type(self).__name__}.stored_frames (docs/visualization.md)"
        )

    def synthetic_world(self) -> type[SyntheticWorld] | None:
        """Returns the settings class of the format's generator of synthetic worlds; None: it has none."""
        return None


def data_format(cfg: CfgNode) -> DataFormat:
    """Returns the format that ``DATASETS.FORMAT`` names.

    Raises:
        ValueError: no format of that name is registered.
    """
    return cast(DataFormat, DATA_FORMAT_REGISTRY.get(cfg.DATASETS.FORMAT))


def load_dataset(cfg: CfgNode, split: str) -> Any:
    """Registers a split in the catalogs, and returns its index.

    Args:
        cfg: the config; reads ``DATASETS`` and what the format adds.
        split: name of the split.

    Raises:
        FileNotFoundError: the data set or one of its files does not exist.
        ValueError: the format or the split is unknown, or a file holds what cannot be.
    """
    return DatasetCatalog.get(data_format(cfg).register(cfg, split))


def dataset_root(cfg: CfgNode) -> str:
    """Returns the folder of the data set.

    A relative ``DATASETS.ROOT`` that does not exist is looked for in the folder that the environment variable
    ``DETECTRON2_DATASETS`` names, where it is set. In both, ``~`` is the home folder.

    Raises:
        FileNotFoundError: ``DETECTRON2_DATASETS`` is set, and the folder is in neither place.
        ValueError: it is an address, not a path.
    """
    refuse_address(cfg.DATASETS.ROOT, "DATASETS.ROOT")
    root = expanded(cfg.DATASETS.ROOT)
    datasets = os.environ.get("DETECTRON2_DATASETS", "")
    if root.is_absolute() or root.exists() or not datasets:
        return str(root)  # the format says what is wrong with one that does not exist
    elsewhere = expanded(datasets) / root
    if not elsewhere.exists():
        raise FileNotFoundError(
            f"DATASETS.ROOT is {str(root)!r}, but neither {Path.cwd() / root} nor {elsewhere} (in "
            "DETECTRON2_DATASETS) exists; set DATASETS.ROOT or DETECTRON2_DATASETS, or make a synthetic "
            "world with `bevkd2 make-synthetic`"
        )
    return str(elsewhere)
