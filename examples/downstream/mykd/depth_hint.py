"""DepthHint: a distillation method of its own, from any dense monocular teacher to any such student."""

from __future__ import annotations

from torch import Tensor

from bevkd2.distill import DistillMethod, register_method
from bevkd2.modeling import MonoKnowledge, MonoTargets


@register_method
class DepthHint(DistillMethod):
    """Compares the student's depths at an object's cells with the teacher's depth of that object.

    The teacher's depth is the one at the location in the object's 2D box where it scores the object's class
    highest, with that score as the weight; so the two may have different levels and strides.
    """

    node = "DEPTH_HINT"
    knowledge = MonoKnowledge
    requires = frozenset({"logits", "depth", "grid"})

    def forward(self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets) -> Tensor:
        """Returns the mean absolute difference of log depths over the student's assigned cells."""
        ours, theirs, logits = student.filled("depth"), teacher.filled("depth"), teacher.filled("logits")
        total, count = ours.new_zeros(()), 0
        for i, assigned in enumerate(targets.assignment()):
            for n in assigned[assigned >= 0].unique():
                box, where = targets.boxes2d[i][n], teacher.locations
                inside = ((where >= box[:2]) & (where < box[2:])).all(1)
                scores = logits[i, :, targets.labels[i][n]].sigmoid() * inside
                score, best = scores.max(0)
                cells = assigned == n
                error = (ours[i, cells] / theirs[i, best].clamp(min=0.1)).log().abs()
                total, count = total + score * error.sum(), count + int(cells.sum())
        return total / max(count, 1)
