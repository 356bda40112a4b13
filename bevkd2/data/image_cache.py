"""Decoded images in memory that all loader workers of a process share."""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class ImageCache:
    """Images of a small dataset, filled by the process that reads a frame first.

    The memory is an anonymous shared mapping, so workers must be forked after the cache is made. Two workers
    that read the same frame at once write the same bytes; the flag is set after the bytes are there.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Reserves memory for all frames.

        Args:
            shapes: of the images of each frame, uint8, e.g. (6, 3, H, W) or (3, H, W).

        Raises:
            ValueError: the images would take more than half of the machine's memory.
        """
        self._shapes = list(shapes)
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        size = int(self._ends[-1]) if self._shapes else 0
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory / 2:
            raise ValueError(
                f"DATALOADER.CACHE_IMAGES: {len(self._shapes)} frames take {size / 2**30:.1f} GiB, more than "
                f"half of the {memory / 2**30:.1f} GiB of this machine; set it to False, or make the images "
                "smaller (INPUT.IMAGE_SCALE; INPUT.RESIZE_TRAIN of single images)"
            )
        logger.info("caching up to %d frames of decoded images in %.2f GiB", len(self._shapes), size / 2**30)
        self._memory = torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)
        self._filled = torch.frombuffer(mmap.mmap(-1, max(len(self._shapes), 1)), dtype=torch.uint8)

    def get(self, i: int, read: Callable[[], Tensor]) -> Tensor:
        """Returns the images of a frame.

        Args:
            i: the frame.
            read: called where the frame is not here yet; returns its images.

        Returns:
            A copy of the images, uint8.

        Raises:
            ValueError: what was read has another shape or dtype than was announced.
        """
        shape, end = self._shapes[i], int(self._ends[i])
        images = self._memory[end - math.prod(shape) : end].view(shape)
        if not self._filled[i]:
            new = read()
            if new.shape != images.shape or new.dtype != images.dtype:
                raise ValueError(
                    f"the images of frame {i} are {new.dtype} {tuple(new.shape)}, expected uint8 "
                    f"{tuple(images.shape)}, which the mapper's cached_shape announced; mend cached_shape, "
                    "or set DATALOADER.CACHE_IMAGES to False"
                )
            images.copy_(new)
            self._filled[i] = 1
        return images.clone()
