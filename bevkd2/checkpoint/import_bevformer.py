"""Between the key layout of the published BEVFormer weights and this package's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from bevkd2.checkpoint.strict import StateDictMismatchError

# Published name, our name. {i} is a number, {rest} anything; the first rule that fits counts.
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


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)")
    return re.compile(escaped)


_TO_OURS = tuple((_pattern(published), ours) for published, ours in _RULES)
_TO_PUBLISHED = tuple((_pattern(ours), published) for published, ours in _RULES)


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What became of every key of a published file."""

    state: dict[str, Tensor]
    """Tensors by our names."""
    mapped: dict[str, str]
    """Our name, by the published one."""
    dropped: dict[str, str]
    """Why, by the published name."""

    def check(
        self, expected: Mapping[str, Tensor], source: str, allow_missing: Sequence[str] = ()
    ) -> ImportReport:
        """Holds the import against the model that it is for.

        Args:
            expected: the model's state dict.
            source: where the weights come from, for the error.
            allow_missing: prefixes of our names that the file may lack.

        Returns:
            This report.

        Raises:
            StateDictMismatchError: keys that the model lacks, that it has more, or of another shape.
        """
        lacking = [key for key in expected if key not in self.state]
        missing = [key for key in lacking if not allow_missing or not key.startswith(tuple(allow_missing))]
        unexpected = [name for name, key in self.mapped.items() if key not in expected]
        mismatched = [
            f"{key} {tuple(self.state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in self.state and self.state[key].shape != expected[key].shape
        ]
        if missing or unexpected or mismatched:
            raise StateDictMismatchError(source, "BEVFormer", missing, unexpected, mismatched)
        return self


def from_published(published: Mapping[str, Tensor]) -> ImportReport:
    """Renames the keys of a published BEVFormer.

    Args:
        published: state dict with ``img_backbone.``, ``img_neck.`` and ``pts_bbox_head.`` keys; a leading
            ``module.`` and the old name ``conv2_offset`` are understood.

    Returns:
        The renamed tensors, with an account of every key.

    Raises:
        KeyError: keys that no rule knows; they are named.
        ValueError: two keys for one tensor.
    """
    state: dict[str, Tensor] = {}
    mapped: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown = []
    for key, value in published.items():
        name = key.removeprefix("module.").replace(".conv2_offset.", ".conv2.conv_offset.")
        target = _rename(name, _TO_OURS)
        if name in _DROPPED:
            dropped[key] = _DROPPED[name]
        elif target is None:
            unknown.append(key)
        elif target in state:
            first = next(other for other, ours in mapped.items() if ours == target)
            raise ValueError(f"the published keys {first} and {key} are both {target}; keep one of them")
        else:
            state[target], mapped[key] = value, target
    if unknown:
        raise KeyError(_unknown(unknown, "a published BEVFormer"))
    return ImportReport(state, mapped, dropped)


def to_published(state: Mapping[str, Tensor], code_weights: Tensor | None = None) -> dict[str, Tensor]:
    """Renames our keys to the published layout.

    Args:
        state: state dict of a BEVFormer of this package, without auxiliary heads.
        code_weights: (10,) stored beside the weights, as published; None: left out.

    Raises:
        KeyError: keys that the published layout has no place for; they are named.
    """
    names = {key: _rename(key, _TO_PUBLISHED) for key in state}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise KeyError(_unknown(unknown, "the published layout"))
    result = {str(name): state[key] for key, name in names.items()}
    if code_weights is not None:
        result[_HEAD + "code_weights"] = code_weights
    return result


def _rename(key: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(key)
        if match:
            return template.format(**match.groupdict())
    return None


def _unknown(keys: list[str], layout: str) -> str:
    rest = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    return f"{len(keys)} keys have no place in {layout}: {', '.join(keys[:10])}{rest}"
