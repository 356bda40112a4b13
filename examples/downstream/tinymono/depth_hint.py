"""DepthHint: a distillation method of its own, from any dense monocular teacher to any such student."""

from bevkd2.distill import DistillMethod, register_method
from bevkd2.modeling.knowledge import MonoKnowledge


@register_method
class DepthHint(DistillMethod):
    """Compares the student's depths of an object with the teacher's depth inside the object's 2D box.

    The teacher's depth is taken where it scores the object's class highest, with that score as the weight; so
    the two may have different levels and strides.
    """

    node = "DEPTH_HINT"
    knowledge = MonoKnowledge
    requires = frozenset({"logits", "depth", "locations"})

    def forward(self, student, teacher, targets):
        """Returns the mean absolute difference of log depths over the student's assigned cells."""
        total, count = student.depth.new_zeros(()), 0
        for i, assigned in enumerate(targets.assigned):
            for n in assigned[assigned >= 0].unique():
                box, where = targets.boxes2d[i][n], teacher.locations
                inside = ((where >= box[:2]) & (where < box[2:])).all(1)
                scores = teacher.logits[i, :, targets.labels[i][n]].sigmoid() * inside
                score, best = scores.max(0)
                cells = assigned == n
                error = (student.depth[i, cells] / teacher.depth[i, best].clamp(min=0.1)).log().abs()
                total, count = total + score * error.sum(), count + int(cells.sum())
        return total / max(count, 1)
