"""Whether single images have objects to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.data.mono.index import MonoIndex
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.mono.transforms import fitting_size, view_of
from bevkd2.data.targets import Lacking, lacking_classes

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """The objects of a split, by what an index does with them before it makes records.

    Attributes:
        kept: (K,) objects that records may hold; None: all that they do hold.
        left_out: why objects are in no record -> (K,) how many.
        others: objects of other classes.
    """

    kept: Counts | None = None
    left_out: Mapping[str, Counts] = field(default_factory=dict)
    others: int = 0


def lacking_in_images(
    names: Sequence[str], index: MonoIndex, mapper: MonoMapper, labelled: Labelled
) -> Lacking:
    """Returns the classes without an object that shows in its image, without augmentation.

    Images are not read; where every class shows in the first few, the others are not looked at.

    Args:
        names: of the K classes.
        index: the split.
        mapper: that of training.
        labelled: objects that are in no record.

    Raises:
        ValueError: a label is none of the classes; names the image.
    """
    shown, held = np.zeros((2, len(names)), dtype=np.int64)
    wanted = np.ones(len(names), dtype=np.bool_) if labelled.kept is None else labelled.kept > 0
    for i in range(len(index)):
        if shown[wanted].all():
            break
        record = index.record(i)
        if record.labels is None or not len(record.labels):
            continue
        strange = record.labels[(record.labels < 0) | (record.labels >= len(names))].tolist()
        if strange:
            raise ValueError(
                f"image {record.image_id} has the label {strange[0]}, expected 0 to {len(names) - 1}, a "
                "place in DATASETS.CLASSES"
            )
        size = fitting_size((record.height, record.width), mapper.resize_within)
        view = view_of(record, torch.zeros(1, dtype=torch.uint8).expand(3, *size))
        held += np.bincount(record.labels.numpy(), minlength=len(names))
        shown += np.bincount(mapper.annotations(record, view)["labels"].numpy(), minlength=len(names))
    unseen = f"have no area in an image (INPUT.BOXES2D {mapper.boxes2d})"
    left_out = {**labelled.left_out, unseen: held if labelled.kept is None else labelled.kept}
    return lacking_classes(names, shown, left_out, labelled.others)
