"""Decoded images in memory that all loader workers of a process share."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class ImageCache:
    """Images of a small dataset, filled by whoever reads a frame first.

    The memory is an anonymous shared mapping, so workers must be forked after the cache is made. Two workers
    that read the same frame at once write the same bytes; the flag is set after the bytes are there.
    """

    def __init__(self, num_frames: int, shape: tuple[int, ...]) -> None:
        """Reserve memory for all frames.

        Args:
            num_frames: number of frames F.
            shape: of the images of a frame, uint8, e.g. (6, 3, H, W).

        Raises:
            ValueError: the images would take more than half of the machine's memory.
        """
        size = num_frames * int(torch.tensor(shape).prod())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory / 2:
            raise ValueError(
                f"DATALOADER.CACHE_IMAGES: {num_frames} frames take {size / 2**30:.1f} GiB, more than half "
                f"of the {memory / 2**30:.1f} GiB of this machine; set it to False, or lower "
                "INPUT.IMAGE_SCALE"
            )
        logger.info("caching up to %d frames of decoded images in %.2f GiB", num_frames, size / 2**30)
        self._images = torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8, count=size)
        self._images = self._images.view(num_frames, *shape)
        self._filled = torch.frombuffer(mmap.mmap(-1, max(num_frames, 1)), dtype=torch.uint8)

    def get(self, i: int, read: Callable[[], Tensor]) -> Tensor:
        """The images of a frame.

        Args:
            i: the frame.
            read: called where the frame is not here yet; returns its images.

        Returns:
            A copy of the images, uint8.

        Raises:
            ValueError: the frame's images have another shape than the cache was made for.
        """
        if not self._filled[i]:
            images = read()
            if images.shape != self._images.shape[1:]:
                raise ValueError(
                    f"DATALOADER.CACHE_IMAGES: the images of frame {i} are {tuple(images.shape)}, those of "
                    f"the first frame {tuple(self._images.shape[1:])}; the cache needs one size, set it to "
                    "False"
                )
            self._images[i] = images
            self._filled[i] = 1
        return self._images[i].clone()
