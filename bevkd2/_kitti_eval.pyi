"""Types of the compiled module (csrc/kitti_eval)."""

from typing import Any

import numpy as np
import numpy.typing as npt

class Objects:
    """Objects of all images: what their files hold."""

    def __init__(
        self,
        types: npt.NDArray[np.int32],
        columns: npt.NDArray[np.float64],
        ignored: npt.NDArray[np.bool_],
        splits: npt.NDArray[np.int64],
        scored: bool,
    ) -> None: ...

def curves(
    truths: Objects,
    detections: Objects,
    type: int,
    neighbour: int,
    dont_care: int,
    metric: int,
    min_overlap: float,
) -> list[dict[str, Any]]:
    """One curve a difficulty, easy to hard."""
