import torch.nn.functional as F
from torch import Tensor

from bevkd2.config import CfgNode
from bevkd2.distill import DistillMethod, register_method
from bevkd2.modeling import BEVKnowledge, BEVTargets, FeatureShapes


@register_method
class CellSimilarity(DistillMethod):
    """Compares the cosine similarities between BEV cells; student and teacher may differ in width."""

    node = "CELL_SIMILARITY"
    knowledge = BEVKnowledge
    requires = frozenset({"bev_embed", "bev_shape", "bev_mask"})

    def __init__(self, cfg: CfgNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.distance = self.one_of(cfg, "DISTANCE", ("l1", "l2"))

    @classmethod
    def add_config(cls, node: CfgNode) -> None:
        super().add_config(node)  # adds WEIGHT, WARMUP and DECAY
        node.DISTANCE = "l2"

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: BEVTargets) -> Tensor:
        shapes = student.bev_shape, teacher.bev_shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"CellSimilarity: the BEV grids are {shapes[0]} and {shapes[1]}; expected equal ones"
            )
        ours, theirs = (F.normalize(each.bev_embed.float(), dim=2) for each in (student, teacher))
        error = ours @ ours.mT - theirs @ theirs.mT  # (B, H*W, H*W)
        error = error.abs() if self.distance == "l1" else error.square()
        seen = (student.seen_by_any_camera() & teacher.seen_by_any_camera()).float()
        pairs = seen[:, :, None] * seen[:, None]
        return (error * pairs).sum() / pairs.sum().clamp(min=1)
