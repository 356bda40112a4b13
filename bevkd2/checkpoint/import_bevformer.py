"""Converts between the key layout of the published BEVFormer weights and this package's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd2.checkpoint.key_rules import ImportReport, KeyRules, register_importer

# Published name, our name.
_HEAD = "pts_bbox_head."
_ENCODER = "pts_bbox_head.transformer.encoder.layers.{i}."
_DECODER = "pts_bbox_head.transformer.decoder.layers.{i}."
_RULES = (
    ("img_backbone.{rest}", "image_backbone.{rest}"),
    ("img_neck.lateral_convs.{i}.conv.{rest}", "neck.lateral_convs.{i}.conv.{rest}"),
    ("img_neck.lateral_convs.{i}.bn.{rest}", "neck.lateral_convs.{i}.norm.{rest}"),
    ("img_neck.fpn_convs.{i}.conv.{rest}", "neck.output_convs.{i}.conv.{rest}"),
    ("img_neck.fpn_convs.{i}.bn.{rest}", "neck.output_convs.{i}.norm.{rest}"),
    (_HEAD + "bev_embedding.weight", "bev_queries"),
    (_HEAD + "positional_encoding.row_embed.weight", "bev_position.row"),
    (_HEAD + "positional_encoding.col_embed.weight", "bev_position.column"),
    (_HEAD + "query_embedding.weight", "object_queries"),
    (_HEAD + "cls_branches.{rest}", "decoder.class_branches.{rest}"),
    (_HEAD + "reg_branches.{rest}", "decoder.box_branches.{rest}"),
    (_HEAD + "transformer.reference_points.{rest}", "decoder.reference_points.{rest}"),
    (_HEAD + "transformer.level_embeds", "encoder.level_embeddings"),
    (_HEAD + "transformer.cams_embeds", "encoder.camera_embeddings"),
    (_HEAD + "transformer.can_bus_mlp.norm.{rest}", "can_bus_mlp.4.{rest}"),
    (_HEAD + "transformer.can_bus_mlp.{rest}", "can_bus_mlp.{rest}"),
    (_ENCODER + "attentions.0.{rest}", "encoder.layers.{i}.temporal_attention.{rest}"),
    (_ENCODER + "attentions.1.output_proj.{rest}", "encoder.layers.{i}.spatial_attention.output_proj.{rest}"),
    (_ENCODER + "attentions.1.deformable_attention.{rest}", "encoder.layers.{i}.spatial_attention.{rest}"),
    (_ENCODER + "ffns.0.layers.0.0.{rest}", "encoder.layers.{i}.ffn.linear1.{rest}"),
    (_ENCODER + "ffns.0.layers.1.{rest}", "encoder.layers.{i}.ffn.linear2.{rest}"),
    (_ENCODER + "norms.0.{rest}", "encoder.layers.{i}.temporal_norm.{rest}"),
    (_ENCODER + "norms.1.{rest}", "encoder.layers.{i}.spatial_norm.{rest}"),
    (_ENCODER + "norms.2.{rest}", "encoder.layers.{i}.ffn_norm.{rest}"),
    (_DECODER + "attentions.0.attn.{rest}", "decoder.layers.{i}.self_attention.{rest}"),
    (_DECODER + "attentions.1.{rest}", "decoder.layers.{i}.cross_attention.{rest}"),
    (_DECODER + "ffns.0.layers.0.0.{rest}", "decoder.layers.{i}.ffn.linear1.{rest}"),
    (_DECODER + "ffns.0.layers.1.{rest}", "decoder.layers.{i}.ffn.linear2.{rest}"),
    (_DECODER + "norms.0.{rest}", "decoder.layers.{i}.self_norm.{rest}"),
    (_DECODER + "norms.1.{rest}", "decoder.layers.{i}.cross_norm.{rest}"),
    (_DECODER + "norms.2.{rest}", "decoder.layers.{i}.ffn_norm.{rest}"),
)
_DROPPED = {_HEAD + "code_weights": "a constant of the loss: MODEL.BEVFORMER.LOSS.CODE_WEIGHTS"}


_KEYS = KeyRules("BEVFormer", _RULES, _DROPPED)


@register_importer("bevformer")
def from_published(published: Mapping[str, Tensor]) -> ImportReport:
    """Renames the keys of a published BEVFormer.

    Args:
        published: state dict with ``img_backbone.``, ``img_neck.`` and ``pts_bbox_head.`` keys; a leading
            ``module.`` and the old name ``conv2_offset`` are understood.

    Returns:
        The renamed tensors, with an account of every key.

    Raises:
        KeyError: keys that no rule fits; the message names them.
        ValueError: two keys for one tensor.
    """
    return _KEYS.from_published(published)


def to_published(state: Mapping[str, Tensor], code_weights: Tensor | None = None) -> dict[str, Tensor]:
    """Renames our keys to the published layout.

    Args:
        state: state dict of a BEVFormer of this package, without auxiliary heads.
        code_weights: (10,) stored beside the weights, as published; None: left out.

    Raises:
        KeyError: keys that the published layout lacks; the message names them.
    """
    result = _KEYS.to_published(state)
    if code_weights is not None:
        result[_HEAD + "code_weights"] = code_weights
    return result
