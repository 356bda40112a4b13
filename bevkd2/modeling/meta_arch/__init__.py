"""Meta-architectures, registered in META_ARCH_REGISTRY by importing this room."""

from bevkd2.modeling.meta_arch.bevformer import BEVFormer
from bevkd2.modeling.meta_arch.fcos3d import FCOS3D
from bevkd2.modeling.meta_arch.pgd import PGD
from bevkd2.modeling.meta_arch.smoke import SMOKE

__all__ = ["FCOS3D", "PGD", "SMOKE", "BEVFormer"]
