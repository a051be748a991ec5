"""Universal values first: private weights moved as little as the values floor asks for.

Preferences are optimised within the universal values (DESIGN).  After training, a user's private
weights w_u are replaced by the nearest, in |w - w_u|, of

    w(lambda) = argmin_w  p/2 |w - w_u|^2 + lambda * mean_v -log sigma(margin_v(w) - target)   (1)

over *public* training pairs v, lambda in ``STRENGTHS`` (0 is w_u itself), and of c w_u, c in
``SHRINKS`` (0 is the shared adapter alone), at which the share of *other* public pairs, the
floor's, that is ordered rightly is not below that of the shared adapter alone, nor by more than
a tolerance below the best of them.  Unlike a smaller w_p, (1) keeps what the values do not touch.

Privacy: weights trained with DP are only processed further here, with public pairs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fl_core.fusion import ordered
from fl_core.private_head import PublicPairs, damped

STRENGTHS = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""lambda, in records' worth of public pairs."""
SHRINKS = (0.75, 0.5, 0.25, 0.0)
"""Factors on w_u, where moving against the values is of no use."""
NEWTON_STEPS = 8


def values_first(
    weights: Tensor, public: PublicPairs, floor: PublicPairs, precision: float, tolerance: float
) -> Tensor:
    """[U, R+1]: ``weights`` [U, R+1], moved as in (1).

    ``public`` pairs pull (their target is in ``offset``, their own weight is not used),
    ``floor`` pairs judge; ``precision`` is p > 0, ``tolerance`` a share in [0, 1].  Without
    pairs of either kind the weights stay, and so do weights of zero: they are the shared model.
    """
    if not len(public.z) or not len(floor.z):
        return weights
    reach = torch.stack([*_path(weights, public, precision), *(c * weights for c in SHRINKS)])
    kept = torch.stack([_share(floor, moved) for moved in reach])
    wanted = torch.maximum(kept.max(0).values - tolerance, kept[-1])
    wanted = torch.where((weights != 0).any(1), wanted, kept[-1])
    distance = (reach - weights).square().sum(2)
    distance[kept < wanted - 1e-9] = torch.inf
    return reach[distance.argmin(0), torch.arange(len(weights))]


def _path(weights: Tensor, public: PublicPairs, precision: float) -> list[Tensor]:
    """w(lambda) for every strength, each found from the one before by Newton steps."""
    eye, path, moved = torch.eye(weights.shape[1]), [weights], weights
    for strength in STRENGTHS[1:]:
        pairs = replace(public, weight=strength)
        for _ in range(NEWTON_STEPS):
            gradient = precision * (moved - weights) + pairs.gradient(moved)
            move = torch.linalg.solve(precision * eye + pairs.hessian(moved), gradient)
            moved = damped(moved, move, partial(_loss, weights, pairs, precision))
        path.append(moved)
    return path


def _loss(start: Tensor, pairs: PublicPairs, precision: float, weights: Tensor) -> Tensor:
    """[U] what equation (1) minimises."""
    return 0.5 * precision * (weights - start).square().sum(1) + pairs.loss(weights)


def _share(floor: PublicPairs, weights: Tensor) -> Tensor:
    """[U] the share of pairs that each user's weights order rightly."""
    margin = floor.offset + weights @ floor.z.T
    return torch.from_numpy(ordered(margin.numpy())).mean(1)
