"""Values come first: weights move until the values have surely not dropped, and no further."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core import values_first as module
from fl_core.private_head import PublicPairs
from fl_core.values_first import (
    RATED,
    SMOOTHING,
    STANDARD_ERRORS,
    STRENGTHS,
    public_metric,
    rated_covariance,
    released_head,
    values_first,
)

PLAIN = torch.eye(3)


def pairs(count: int, seed: int, target: float = 0.0) -> PublicPairs:
    """Public pairs that a large first coordinate orders rightly; the common head orders most."""
    generator = torch.Generator().manual_seed(seed)
    z = 0.3 * torch.randn(count, 3, generator=generator)
    z[:, 0] += 1.0
    return PublicPairs(z, 0.5 + 0.2 * torch.randn(count, generator=generator) - target, 1.0)


def right(floor: PublicPairs, weights: Tensor) -> Tensor:
    return (floor.offset + weights @ floor.z.T > 0).float()


def share(floor: PublicPairs, weights: Tensor) -> Tensor:
    return right(floor, weights).mean(1)


def surely(floor: PublicPairs, weights: Tensor) -> Tensor:
    """[U] the smoothed share's change less its standard errors, in float64 by hand."""
    tau = SMOOTHING * float(floor.offset.abs().mean())
    margin = (floor.offset + weights @ floor.z.T).double().numpy()
    change = 1 / (1 + np.exp(-margin / tau)) - 1 / (1 + np.exp(-floor.offset.double().numpy() / tau))
    error = np.sqrt((change**2).sum(1)) / change.shape[1]
    return torch.from_numpy(change.mean(1) - STANDARD_ERRORS * error)


PUBLIC, FLOOR = pairs(200, 0, target=2.0), pairs(150, 1, target=0.4)


def moved_by(
    weights: Tensor, drop: float, public: PublicPairs = PUBLIC, floor: PublicPairs = FLOOR
) -> Tensor:
    return values_first(weights, public, floor, PLAIN, 4.0, drop)


def test_who_keeps_the_floor_is_not_touched() -> None:
    weights = torch.tensor([[4.0, 0.5, -0.5], [6.0, 0.0, 1.0]])
    assert torch.equal(moved_by(weights, 0.01), weights)


def test_who_breaks_it_is_moved_until_it_surely_holds() -> None:
    weights = torch.tensor([[-5.0, 0.5, -0.5], [5.0, 0.0, 0.0], [-0.6, 3.0, 0.0]])
    alone = share(FLOOR, torch.zeros(1, 3))
    assert share(FLOOR, weights)[0] < 0.1 < alone < 0.9
    moved = moved_by(weights, 0.02)
    assert (surely(FLOOR, moved) >= -0.02 - 1e-6).all()
    assert torch.equal(moved[1], weights[1])
    # What the values do not speak of is kept: a smaller w_p would have shrunk it as well.
    assert moved[2, 1] > 1.5


def test_an_estimate_within_the_drop_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen pairs lost for good and sixteen won: no drop in the mean, and no certainty either."""
    z = torch.zeros(200, 3)
    z[:16, 0], z[16:32, 0] = 1.0, -1.0
    floor = PublicPairs(z, torch.where(z[:, 0] < 0, 0.5, torch.where(z[:, 0] > 0, -0.5, 1.0)), 1.0)
    weights = torch.tensor([[1.0, 0.2, 0.0]])
    assert share(floor, weights) == share(floor, torch.zeros(1, 3))
    moved = moved_by(weights, 0.01, floor=floor)
    assert not torch.equal(moved, weights)
    monkeypatch.setattr(module, "STANDARD_ERRORS", 0.0)
    assert torch.equal(moved_by(weights, 0.01, floor=floor), weights)


def test_pairs_that_cross_zero_by_a_hair_are_no_loss() -> None:
    """Forty undecided pairs tip over, as fresh ones would tip back; counted, they would forbid the move."""
    z = torch.zeros(400, 3)
    z[:40, 0] = torch.linspace(-1.0, -0.9, 40)
    z[40:80, 0] = torch.linspace(0.9, 1.0, 40)
    offset = torch.full((400,), 2.0)
    offset[:40], offset[40:80] = 0.004, -0.02
    floor, weights = PublicPairs(z, offset, 1.0), torch.tensor([[0.01, 0.3, 0.0]])
    assert share(floor, weights) < share(floor, torch.zeros(1, 3)) - 0.05
    assert torch.equal(moved_by(weights, 0.01, floor=floor), weights)


def test_a_larger_drop_moves_less_and_a_users_result_is_his_own() -> None:
    weights = torch.tensor([[-3.0, 1.0, 0.0], [-0.7, 0.0, 2.0]])
    strict, lax = (moved_by(weights, drop) for drop in (0.0, 0.3))
    assert ((lax - weights).norm(dim=1) < (strict - weights).norm(dim=1) - 1e-3).any()
    assert ((lax - weights).norm(dim=1) <= (strict - weights).norm(dim=1) + 1e-6).all()
    assert torch.allclose(moved_by(weights[:1], 0.0), strict[:1], atol=1e-5)


def test_who_has_no_weights_is_the_shared_model_and_stays_so() -> None:
    weights = torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]])
    moved = moved_by(weights, 0.0, floor=pairs(150, 1, target=0.6))
    assert not moved[0].any()
    assert not torch.equal(moved[1], weights[1])


@pytest.mark.parametrize("empty", ["public", "floor"])
def test_without_public_pairs_weights_stay(empty: str) -> None:
    nothing = PublicPairs(torch.zeros(0, 3), torch.zeros(0), 1.0)
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    given = (nothing, FLOOR) if empty == "public" else (PUBLIC, nothing)
    assert values_first(weights, *given, PLAIN, 4.0, 0.0) is weights
    assert released_head(weights[0], *given, PLAIN, 4.0, 0.0).equal(weights[0])


def test_where_no_pull_helps_the_weights_shrink_instead() -> None:
    """Directions in which public pairs train the wrong way for the floor: only less of w_u helps."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(300, 3, generator=generator)
    floor = PublicPairs(z, 1.0 + 0.1 * torch.randn(300, generator=generator), 1.0)
    public = PublicPairs(0.01 * torch.randn(50, 3, generator=generator), torch.zeros(50), 1.0)
    weights = torch.tensor([[3.0, -3.0, 3.0]])
    moved = moved_by(weights, 0.02, public, floor)
    assert share(floor, weights) < 0.9 <= share(floor, moved)
    assert moved.norm() < weights.norm()
    direction = torch.nn.functional.cosine_similarity(moved, weights)
    assert moved.norm() == 0 or direction > 0.99


def test_each_point_of_the_path_is_a_minimum() -> None:
    """The gradient of equation (1) vanishes at each, under a metric of any form."""
    metric = public_metric(torch.tensor([[1.0, 0.4, 0.0], [0.4, 2.0, 0.0], [0.0, 0.0, 0.1]]))
    start = torch.tensor([[-50.0, 1.0, 0.0], [1.0, 0.0, -3.0]])
    path = module._path(start, PUBLIC, 4.0 * metric)
    assert torch.equal(path[0], start)
    for strength, moved in zip(STRENGTHS[1:], path[1:], strict=True):
        pull = PublicPairs(PUBLIC.z, PUBLIC.offset, strength).gradient(moved)
        assert (4.0 * (moved - start) @ metric + pull).norm(dim=1).max() < 1e-3 * strength
    losses = torch.stack([PublicPairs(PUBLIC.z, PUBLIC.offset, 1.0).loss(moved) for moved in path])
    assert (losses.diff(dim=0) < 0).all()


def test_a_move_spares_what_rated_texts_score() -> None:
    """Two coordinates that serve the values alike; rated texts read the first: the second moves."""
    generator = torch.Generator().manual_seed(5)
    z = torch.stack([torch.ones(200), torch.ones(200), torch.zeros(200)], 1)
    z = z + 0.2 * torch.randn(200, 3, generator=generator)
    public, floor = (
        PublicPairs(z[:100], torch.full((100,), -2.0), 1.0),
        PublicPairs(z[100:], torch.zeros(100), 1.0),
    )
    head = torch.tensor([-1.0, -1.0, 0.5])
    metric = public_metric(torch.diag(torch.tensor([1.0, 0.01, 0.01])))
    moved = released_head(head, public, floor, metric, 4.0, 0.02) - head
    plain = released_head(head, public, floor, PLAIN, 4.0, 0.02) - head
    assert moved[1] > 5 * moved[0] > 0
    assert abs(float(plain[0] / plain[1]) - 1.0) < 0.2


def test_a_released_head_is_the_first_on_the_path_that_is_good_enough() -> None:
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(400, 3, generator=generator) + torch.tensor([0.4, 0.0, 0.0])
    public, floor = (
        PublicPairs(z[:200], torch.full((200,), -2.0), 1.0),
        PublicPairs(z[200:], torch.zeros(200), 1.0),
    )
    head = torch.tensor([-1.0, 2.0, -2.0])
    at = {tol: released_head(head, public, floor, PLAIN, 4.0, tol) for tol in (0.0, 0.05, 0.15, 1.0)}
    assert at[1.0].equal(head)
    shares = {tol: float(share(floor, moved[None])) for tol, moved in at.items()}
    assert shares[0.0] > shares[1.0] + 0.2
    for tolerance, found in shares.items():
        assert found >= shares[0.0] - tolerance - 1e-6
    far = [float((at[tolerance] - head).norm()) for tolerance in (0.0, 0.05, 0.15, 1.0)]
    assert far == sorted(far, reverse=True)
    assert far[1] > far[2] > 0


def test_the_metric_is_of_the_rated_texts_alone_and_has_the_identitys_trace() -> None:
    phi = torch.randn(30, 4, generator=torch.Generator().manual_seed(7))
    rated, directions = np.array([1, 2, 5, 9, 20]), torch.eye(4)[:3]
    found = rated_covariance(phi, rated, directions)
    scores = phi[[1, 2, 5, 9, 20], :3].numpy() / math.sqrt(4)
    assert np.allclose(found.numpy(), np.cov(scores.T, bias=True), atol=1e-6)
    assert not rated_covariance(phi, rated[:0], directions).any()
    metric = public_metric(found)
    assert float(metric.diagonal().sum()) == pytest.approx(3.0)
    assert float(torch.linalg.eigvalsh(metric).min()) >= 1 - RATED - 1e-6
    assert torch.allclose(public_metric(torch.zeros(3, 3)), (1 - RATED) * torch.eye(3))
