"""What a reward head reads: pooled final hidden states, whitened by public statistics.

phi(s) = W (pool(s) - mu) / sqrt(F), where ``pool`` is the last token's final hidden state, or
that and the mean over the response's tokens.  mu and W come from *public texts* under the base
model; they are constants, known to server and devices.  Whitening makes all directions of phi
alike, so that first-order steps, and clipping, treat them alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["last", "last-mean"]
SHRINKAGE = 0.1
"""Share of the mean eigenvalue that is added to all: small directions are not blown up."""


@dataclass(frozen=True)
class FeatureMap:
    """``pooling`` and the public constants mu [F0] and W [F0, F] (``None``: as they are)."""

    width: int
    pooling: Pooling = "last"
    centre: Tensor | None = None
    whiten: Tensor | None = None

    @staticmethod
    def plain(hidden: int, pooling: Pooling = "last") -> FeatureMap:
        """Without whitening: width ``hidden``, or twice that for ``last-mean``."""
        return FeatureMap(hidden * (2 if pooling == "last-mean" else 1), pooling)

    def fitted(self, pooled: Tensor) -> FeatureMap:
        """The same pooling, whitened by the statistics of public texts' ``pooled`` [S, F0].

        Coordinates come in order of falling variance, as in a principal component analysis.
        """
        centre = pooled.mean(0)
        covariance = (pooled - centre).T @ (pooled - centre) / len(pooled)
        variance, directions = torch.linalg.eigh(covariance.double())
        order = variance.argsort(descending=True)
        floor = SHRINKAGE * variance.clamp_min(0.0).mean() + 1e-12
        whiten = directions[:, order] / (variance[order].clamp_min(0.0) + floor).sqrt()
        return FeatureMap(self.width, self.pooling, centre, whiten.float())

    def pool(self, final: Tensor, lengths: Tensor, response: Tensor) -> Tensor:
        """[N, F0] float32 from final hidden states [N, T, d] and the response mask [N, T]."""
        last = final[torch.arange(len(lengths)), lengths - 1].float()
        if self.pooling == "last":
            return last
        weight = response[:, : final.shape[1]].float()
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1.0)
        return torch.cat([last, (final.float() * weight[:, :, None]).sum(1)], dim=1)

    def __call__(self, final: Tensor, lengths: Tensor, response: Tensor) -> Tensor:
        """[N, F] float32 phi without the 1/sqrt(F), which the head's scale holds."""
        pooled = self.pool(final, lengths, response)
        if self.centre is None or self.whiten is None:
            return pooled
        return (pooled - self.centre) @ self.whiten
