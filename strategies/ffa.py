"""FFA-LoRA: A frozen at a public start, B averaged.

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024,
arXiv 2403.12313), section 4: with A fixed and equal everywhere,
mean_k(B_k) A = mean_k(B_k A), so averaging is exact, and noise added to B has no cross term
with noise on A.

A is not in the arrays at all: every node derives it from the public seed.
"""

from __future__ import annotations

from typing import ClassVar

from fl_core.config import RunConfig
from strategies.base import FederatedStrategy, require_kinds


class FFA(FederatedStrategy):
    """Averages B alone."""

    method: ClassVar[str] = "ffa"
    about: ClassVar[str] = "A frozen, B averaged: exact; Sun et al. 2024"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """The shared adapter must train B over a fixed A."""
        require_kinds(config, cls.method, shared=("b_only",))
