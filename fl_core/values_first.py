"""Universal values first: private weights moved as little as the values floor asks for.

Preferences are optimised within the universal values (DESIGN).  After training, a user's private
weights w_u are replaced by

    w(lambda) = argmin_w  p/2 |w - w_u|^2 + lambda * mean_v -log sigma(margin_v(w) - target)   (1)

over *public* training pairs v, at the smallest lambda of ``STRENGTHS`` (0 first: w_u itself) at
which the share of *other* public pairs, the floor's, that is ordered rightly is not below that
of the shared adapter alone, nor by more than a tolerance below the best over all lambda.
Unlike a smaller w_p this keeps what the values do not touch.

Privacy: weights trained with DP are only processed further here, with public pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fl_core.private_head import PublicPairs

STRENGTHS = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""lambda, in records' worth of public pairs."""
NEWTON_STEPS = 8


def values_first(
    weights: Tensor, public: PublicPairs, floor: PublicPairs, precision: float, tolerance: float
) -> Tensor:
    """[U, R+1]: ``weights`` [U, R+1], moved as in (1).

    ``public`` pairs pull (their target is in ``offset``, their own weight is not used),
    ``floor`` pairs judge; ``precision`` is p > 0, ``tolerance`` a share in [0, 1].  Without
    pairs of either kind the weights stay.
    """
    if not len(public.z) or not len(floor.z):
        return weights
    path = _path(weights, public, precision)
    kept = torch.stack([_ordered(floor, moved) for moved in path])
    alone = _ordered(floor, torch.zeros_like(weights[:1]))
    wanted = torch.maximum(kept.max(0).values - tolerance, alone)
    enough = kept >= wanted - 1e-9
    enough[-1] |= ~enough.any(0)
    first = enough.int().argmax(0)
    return torch.stack(path)[first, torch.arange(len(weights))]


def _path(weights: Tensor, public: PublicPairs, precision: float) -> list[Tensor]:
    """w(lambda) for every strength, each found from the one before by Newton steps."""
    eye, path, moved = torch.eye(weights.shape[1]), [weights], weights
    for strength in STRENGTHS[1:]:
        pairs = replace(public, weight=strength)
        for _ in range(NEWTON_STEPS):
            gradient = precision * (moved - weights) + pairs.gradient(moved)
            moved = moved - torch.linalg.solve(precision * eye + pairs.hessian(moved), gradient)
        path.append(moved)
    return path


def _ordered(floor: PublicPairs, weights: Tensor) -> Tensor:
    """[U] the share of pairs with a positive margin; a margin of 0 counts one half."""
    margin = floor.offset + weights @ floor.z.T
    return (0.5 + 0.5 * torch.sign(margin)).mean(1)
