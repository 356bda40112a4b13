"""A Distiller of toy size, built and run, and a method that learns nothing."""

from bevkd2.d2 import META_ARCH_REGISTRY, EventStorage
from bevkd2.distill import DistillMethod
from bevkd2.modeling.knowledge import BEVKnowledge

METHODS = ["TemporalAttention", "SpatialAttention", "BEVResponse"]


def build(cfg):
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def train_losses(model, batch):
    with EventStorage():
        return model.train()(batch)


class Untrained(DistillMethod):
    """Returns one loss of a name that is given."""

    node = "UNTRAINED"
    knowledge = BEVKnowledge
    requires = frozenset({"bev_embed"})

    def __init__(self, name):
        super().__init__(None, None, None)
        self.name = name

    def forward(self, student, teacher, targets):
        return {self.name: (student.bev_embed - teacher.bev_embed).mean()}
