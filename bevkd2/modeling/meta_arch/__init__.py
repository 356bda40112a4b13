"""Meta-architectures, registered in META_ARCH_REGISTRY by importing this room."""

from bevkd2.modeling.meta_arch.bevformer import BEVFormer

__all__ = ["BEVFormer"]
