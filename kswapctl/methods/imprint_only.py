"""Imprinting alone: a new class is a row made of its mean feature; the network stays as it is.

Qi et al., Low-Shot Learning with Imprinted Weights, CVPR 2018. Every way of learning here starts from these rows
(``kswapctl.models.heads.imprint``, which centres them and gives them a bias); this one also ends there.
"""

from dataclasses import dataclass

from kswapctl.methods.base import Method


@dataclass(frozen=True)
class Learn(Method):
    """Add a row for each new class, made of its mean feature; nothing is trained."""

    kind = "learn"
    source = "Qi et al., Low-Shot Learning with Imprinted Weights, CVPR 2018"
    stepped = False

    steps: int = 1
    """No step is taken."""
    cycles: int = 1
    """One: nothing is trained."""
