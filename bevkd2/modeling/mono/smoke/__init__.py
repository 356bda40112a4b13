"""SMOKE: config, head, targets, losses and decoding."""

from bevkd2.modeling.mono.smoke.smoke import SMOKE

__all__ = ["SMOKE"]
