from collections.abc import Mapping

from torch import Tensor

from bevkd2.checkpoint import ImportReport, KeyRules, register_importer

RULES = KeyRules("CellBEV", [("trunk.{rest}", "image_backbone.{rest}"), ("{rest}", "{rest}")])


@register_importer("cellbev")
def from_published(published: Mapping[str, Tensor]) -> ImportReport:
    return RULES.from_published(published)
