"""What a reward head reads: pooled hidden states, partly whitened by public statistics.

phi(s) = W (pool(s) - mu), scaled so that public texts have |phi|^2 = F on average; the head's
scale holds a 1/sqrt(F).  ``pool`` is the last token's final hidden state, or that and the mean
over the response's tokens of the final state ("last-mean") or of the states at all depths
("layers": the embeddings, each layer's output).  mu and W come from *public texts* under the
base model; they are constants, known to server and devices.

W scales principal directions by variance^-``POWER``.  A power of 1/2 would be whitening: all
directions alike, which first-order steps and clipping need; 0 leaves them as they are, which
generalises better to texts that nobody rated.  What lies between was chosen on validation
records (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl_core.errors import AdapterError
from fl_core.trunk import last_token, response_mean

Pooling = Literal["last", "last-mean", "layers"]
POWER = 0.35
"""Exponent of the variance by which a direction is divided: 0.5 whitens, 0 does nothing."""
SHRINKAGE = 0.1
"""Share of the mean variance that is added to all.  With less, directions that the public texts
lack are blown up, and texts that nobody has seen come out several times too large."""
MOST_DEPTHS = 8
"""Depths that "layers" reads at most, evenly spaced, so that deep models' heads stay small."""


@dataclass(frozen=True)
class FeatureMap:
    """``pooling``, the ``depths`` it reads and the public constants mu [F0] and W [F0, F]; F = ``width``.

    ``centre`` and ``whiten`` are ``None`` where states are taken as they are; ``spread`` [F] is
    each coordinate's mean square over the public texts.
    """

    width: int
    pooling: Pooling = "last"
    depths: tuple[int, ...] = ()
    centre: Tensor | None = None
    whiten: Tensor | None = None
    spread: Tensor | None = None

    @staticmethod
    def plain(hidden: int, pooling: Pooling = "last", depths: int = 0) -> FeatureMap:
        """Without whitening; ``depths`` is how many states the model has (``Trunk.depths``)."""
        if pooling == "layers":
            if depths < 1:
                raise AdapterError("pooling='layers': needs the number of depths; use Trunk.depths")
            kept = np.unique(np.linspace(0, depths - 1, min(depths, MOST_DEPTHS)).round().astype(int))
            return FeatureMap(hidden * (1 + len(kept)), pooling, tuple(int(depth) for depth in kept))
        return FeatureMap(hidden * (2 if pooling == "last-mean" else 1), pooling)

    def fitted(self, pooled: Tensor) -> FeatureMap:
        """The same pooling, scaled by the statistics of public texts' ``pooled`` [S, F].

        Coordinates come in order of falling variance, as in a principal component analysis.
        """
        centre = pooled.mean(0)
        centred = pooled - centre
        variance, directions = torch.linalg.eigh((centred.T @ centred / len(pooled)).double())
        order = variance.argsort(descending=True)
        floor = SHRINKAGE * variance.clamp_min(0.0).mean() + 1e-12
        whiten = (directions[:, order] / (variance[order].clamp_min(0.0) + floor) ** POWER).float()
        spread = (centred @ whiten).square().mean(0)
        scale = self.width / spread.sum().clamp_min(1e-12)
        return FeatureMap(
            self.width, self.pooling, self.depths, centre, whiten * scale.sqrt(), spread * scale
        )

    def narrowed(self, width: int) -> FeatureMap:
        """The map to the leading ``width`` coordinates, scaled anew so that |phi|^2 is ``width``."""
        if width >= self.width:
            return self
        if self.whiten is None or self.spread is None:
            return FeatureMap(width, self.pooling, self.depths)
        spread = self.spread[:width]
        scale = width / spread.sum().clamp_min(1e-12)
        whiten = self.whiten[:, :width] * scale.sqrt()
        return FeatureMap(width, self.pooling, self.depths, self.centre, whiten, spread * scale)

    def pool(self, final: Tensor, lengths: Tensor, response: Tensor, means: Tensor | None = None) -> Tensor:
        """[N, F] float32 from final hidden states [N, T, d] and the response mask [N, T].

        ``means`` [N, depths, d] of ``Trunk.suffix_means``, where ``depths`` are read.
        """
        last = last_token(final, lengths)
        if self.pooling == "last":
            return last
        if self.pooling == "last-mean":
            return torch.cat([last, response_mean(final, response)], dim=1)
        if means is None:
            raise AdapterError("pooling='layers': needs the means at all depths")
        return torch.cat([last, means[:, list(self.depths)].flatten(1)], dim=1)

    def __call__(
        self, final: Tensor, lengths: Tensor, response: Tensor, means: Tensor | None = None
    ) -> Tensor:
        """[N, F] float32 phi without the 1/sqrt(F), which the head's scale holds."""
        return self.scaled(self.pool(final, lengths, response, means))

    def scaled(self, pooled: Tensor) -> Tensor:
        """[N, F] phi of pooled states [N, F]."""
        if self.centre is None or self.whiten is None:
            return pooled[:, : self.width]
        return (pooled - self.centre) @ self.whiten
