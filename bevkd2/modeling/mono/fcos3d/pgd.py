"""PGD (Wang et al., arXiv 2107.14160): FCOS3D whose depth is probabilistic, too."""

from __future__ import annotations

from typing import Any

from bevkd2.config import CfgNode
from bevkd2.d2 import META_ARCH_REGISTRY
from bevkd2.modeling.mono.fcos3d.config import pgd_arguments
from bevkd2.modeling.mono.fcos3d.fcos3d import FCOS3D


@META_ARCH_REGISTRY.register()
class PGD(FCOS3D):
    """FCOS3D with a depth distribution, fused with the regressed depth, and with geometric side tasks.

    As in the released code there is no graph that propagates depths between objects.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translates the config into constructor arguments."""
        return pgd_arguments(cfg)
