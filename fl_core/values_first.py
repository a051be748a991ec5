"""Universal values first: trained weights moved, as little as it takes, to where they keep the values.

Preferences are optimised within the universal values (DESIGN).  Weights w0 that were trained, of
one user's personal adapter or of the shared reward head, are replaced by a point of the path

    w(lambda) = argmin_w  p/2 (w - w0)' M (w - w0) + lambda * mean_v -log sigma(margin_v(w) - target)   (1)

over *public* training pairs v, lambda in ``STRENGTHS`` (0 is w0 itself).  M weighs a move mostly by
what it does to the scores of public rated texts (``public_metric``): what the values do not touch
stays.  *Other* public pairs, the floor's, judge:

- a **user's** weights become the nearest, in M, of w(lambda) and of c w0, c in ``SHRINKS`` (0 is the
  shared adapter alone), whose share of rightly ordered floor pairs is surely not more than ``drop``
  below that of the shared adapter alone: not even ``STANDARD_ERRORS`` below its estimate.  The
  shares are smoothed, the mean of sigmoid(margin / tau) with tau ``SMOOTHING`` of the shared
  adapter's mean |margin|: a pair that crosses zero by a hair says little of fresh pairs, and counting
  it would make a harmless change look uncertain (smoothed error rates: Glick 1978).  The standard
  error is that of the paired differences, counted as independent, though those of one prompt are alike;
- a **released** head that noise had hidden the values from becomes the first point of the path whose
  share is not more than a tolerance below the best of the path.

Privacy: weights trained with DP are only processed further here, with public texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core.fusion import ordered
from fl_core.private_head import PublicPairs, damped
from fl_core.stopwatch import timed

STRENGTHS = (0.0, *(3.0 * 2.0**k for k in range(11)))
"""lambda, in records' worth of public pairs."""
SHRINKS = (0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0)
"""Factors on a user's w0, where moving against the values is of no use."""
STANDARD_ERRORS = 6.0
"""How sure it must be that a user's values have not dropped.  Smoothed shares vary less than those of
fresh pairs that are counted, so more of them are asked for than the usual three (docs/decisions.md)."""
SMOOTHING = 0.25
"""tau, over the mean |margin| of the shared adapter alone."""
RATED = 0.8
"""Share of M that is the covariance of public rated texts; the rest is the identity."""
NEWTON_STEPS = 8
SETTLED = 1e-5
"""A Newton step smaller than this, in every number, is the last."""


def public_metric(covariance: Tensor) -> Tensor:
    """M [K, K] of equation (1) from the ``covariance`` [K, K] of what rated texts' scores read.

    Scaled to the trace of the identity, whose share 1 - ``RATED`` keeps M positive definite.
    """
    count = len(covariance)
    scaled = covariance * (count / covariance.diagonal().sum().clamp_min(1e-12))
    return RATED * scaled + (1.0 - RATED) * torch.eye(count)


def rated_covariance(phi: Tensor, rated: npt.NDArray[np.int64], directions: Tensor) -> Tensor:
    """[K, K] of what ``directions`` [K, F] read of the ``rated`` texts of phi [S, F], over sqrt(F)."""
    if not len(rated):
        return torch.zeros(len(directions), len(directions))
    scores = phi[torch.from_numpy(rated)] @ directions.T / math.sqrt(phi.shape[1])
    centred = scores - scores.mean(0)
    return centred.T @ centred / len(rated)


@timed("values and fusion")
def values_first(
    weights: Tensor, public: PublicPairs, floor: PublicPairs, metric: Tensor, precision: float, drop: float
) -> Tensor:
    """[U, K]: every user's ``weights`` [U, K], moved as the module says.

    ``public`` pairs pull (their target is in ``offset``, their own weight is not used),
    ``floor`` pairs judge; ``metric`` is M [K, K], ``precision`` p > 0, ``drop`` a share in [0, 1].
    Without pairs of either kind the weights stay.
    """
    if not len(public.z) or not len(floor.z) or not len(weights):
        return weights
    reach = torch.stack([*_path(weights, public, precision * metric), *(c * weights for c in SHRINKS)])
    tau = SMOOTHING * floor.offset.abs().mean().clamp_min(1e-6)
    alone = torch.sigmoid(floor.offset / tau)
    kept = torch.stack([_surely_within(_smoothed(floor, moved, tau) - alone, drop) for moved in reach])
    distance = (((reach - weights) @ metric) * (reach - weights)).sum(2)
    distance[~kept] = torch.inf
    return reach[distance.argmin(0), torch.arange(len(weights))]


def released_head(
    head: Tensor,
    public: PublicPairs,
    floor: PublicPairs,
    metric: Tensor,
    precision: float,
    tolerance: float,
) -> Tensor:
    """[F]: a shared ``head`` [F], moved as the module says; ``tolerance`` is a share in [0, 1].

    Arguments as in ``values_first``; margins are those of the head alone, so offsets hold the
    target and nothing else.  Without pairs of either kind the head stays.
    """
    if not len(public.z) or not len(floor.z):
        return head
    path = _path(head[None], public, precision * metric)
    shares = [float(_right(floor, moved).mean()) for moved in path]
    first = next(place for place, share in enumerate(shares) if share >= max(shares) - tolerance - 1e-9)
    return path[first][0]


def _path(start: Tensor, public: PublicPairs, stiffness: Tensor) -> list[Tensor]:
    """w(lambda) for every strength, each found from the one before by Newton steps; pM is ``stiffness``."""
    path, moved = [start], start
    for strength in STRENGTHS[1:]:
        pairs = replace(public, weight=strength)
        loss: Callable[[Tensor], Tensor] = partial(_loss, start, pairs, stiffness)
        for _ in range(NEWTON_STEPS):
            gradient = (moved - start) @ stiffness + pairs.gradient(moved)
            step = torch.linalg.solve(stiffness + pairs.hessian(moved), gradient)
            moved = damped(moved, step, loss)
            if float(step.abs().max()) < SETTLED:
                break
        path.append(moved)
    return path


def _loss(start: Tensor, pairs: PublicPairs, stiffness: Tensor, weights: Tensor) -> Tensor:
    """[U] what equation (1) minimises."""
    return 0.5 * (((weights - start) @ stiffness) * (weights - start)).sum(1) + pairs.loss(weights)


def _smoothed(floor: PublicPairs, weights: Tensor, tau: Tensor) -> Tensor:
    """[U, V] sigmoid(margin / tau) of each pair under each user's weights."""
    return torch.sigmoid((floor.offset + weights @ floor.z.T) / tau)


def _right(floor: PublicPairs, weights: Tensor) -> Tensor:
    """[U, V] 1 where a user's weights order a pair rightly, 1/2 on a tie, 0 else."""
    return torch.from_numpy(ordered((floor.offset + weights @ floor.z.T).numpy()))


def _surely_within(change: Tensor, drop: float) -> Tensor:
    """[U] whether the mean of ``change`` [U, V] is above -``drop`` by enough standard errors."""
    error = change.square().sum(1).sqrt() / change.shape[1]
    return change.mean(1) - STANDARD_ERRORS * error >= -drop - 1e-9
