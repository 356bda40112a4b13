"""What data formats of single images share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from fvcore.common.config import CfgNode
from tqdm import tqdm

from bevkd2.config import class_names
from bevkd2.data.format import DataFormat, Mapper
from bevkd2.data.mono.index import JoinedIndex, MonoIndex
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.mono.targets import Labelled, lacking_in_images

if TYPE_CHECKING:
    from bevkd2.data.loader import MappedDataset
    from bevkd2.data.targets import Lacking
    from bevkd2.modeling.detector import Detector
    from bevkd2.modeling.mono.detector import MonoDetector
    from bevkd2.visualization.objects import Image


class MonoFormat(DataFormat, ABC):
    """A format whose index is a :class:`MonoIndex`, for monocular detectors.

    What is left to a subclass: ``name``, the classes, ``typical_image_size``, ``load`` and ``evaluator``.
    """

    single_images = True

    def join(self, indices: Sequence[MonoIndex]) -> MonoIndex:
        """Returns the images of all splits."""
        return JoinedIndex(indices)

    def groups(self, index: MonoIndex) -> list[range]:
        """Returns the groups of the index."""
        return index.groups()

    def mapper(self, cfg: CfgNode, *, is_train: bool) -> Mapper:
        """Returns a :class:`MonoMapper`."""
        mapper: Mapper = MonoMapper(cfg, is_train=is_train)
        return mapper

    def random_settings(self, cfg: CfgNode) -> list[str]:
        """Returns also the keys of mirroring and warping, where a sample may be mirrored or warped."""
        affine = cfg.INPUT.AFFINE
        random = {
            f"INPUT.FLIP_PROB: {cfg.INPUT.FLIP_PROB}": cfg.INPUT.FLIP_PROB > 0,
            f"INPUT.AFFINE.PROB: {affine.PROB}": affine.ENABLED and affine.PROB > 0,
        }
        return super().random_settings(cfg) + [setting for setting, applies in random.items() if applies]

    def lacking(self, cfg: CfgNode, index: MonoIndex) -> Lacking:
        """Returns the classes without an object that shows in its image."""
        mapper = self.mapper(cfg, is_train=True)
        if not isinstance(mapper, MonoMapper):
            return super().lacking(cfg, index)
        return lacking_in_images(class_names(cfg), index, mapper, self.labelled(index))

    def labelled(self, index: MonoIndex) -> Labelled:
        """Returns the objects of a split that its records leave out; by default none."""
        return Labelled()

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
        """Draws images; see ``DataFormat.figures``.

        Raises:
            ValueError: an image that is not in the split.
        """
        from bevkd2.visualization import mono_figures, see_image

        for i in tqdm(choose_images(dataset.index, sample_ids, num), unit="image"):
            sample = dataset[(i, 0)]
            views = {name: see_image(cast("MonoDetector", model), sample) for name, model in models.items()}
            pictures = mono_figures(
                sample,
                views,
                dataset.class_names,
                score_threshold=score_threshold,
                perspective=cfg.DISTILL.PERSPECTIVE_FEATURE,
            )
            yield sample["sample_id"].replace("/", "_"), pictures


def choose_images(index: MonoIndex, image_ids: Sequence[str], num: int) -> list[int]:
    """Returns the places of the images to draw.

    Args:
        index: the split.
        image_ids: those to draw; none: ``num`` images spread over the split.
        num: how many, if none are named.

    Raises:
        ValueError: an image that is not in the split.
    """
    if not image_ids:
        return sorted({round(i) for i in np.linspace(0, len(index) - 1, num)})
    places = {index.record(i).image_id: i for i in range(len(index))}
    missing = [name for name in image_ids if name not in places]
    if missing:
        raise ValueError(
            f"--image-id {', '.join(missing)}: not in this split of {len(places)} images, whose first is "
            f"{next(iter(places))!r}; name one of it, or set DATASETS.TEST to a split that has it"
        )
    return [places[name] for name in image_ids]
