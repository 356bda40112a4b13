"""BEVFormer: config, inputs, encoder, decoder, losses; importing this package registers it."""

from bevkd2.modeling.bev.bevformer import BEVFormer

__all__ = ["BEVFormer"]
