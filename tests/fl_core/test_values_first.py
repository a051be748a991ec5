"""Values come first: weights move until the floor holds, and no further."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fl_core.private_head import PublicPairs
from fl_core.values_first import STRENGTHS, values_first


def pairs(count: int, seed: int, target: float = 0.0) -> PublicPairs:
    """Public pairs that a large first coordinate orders rightly; the common head orders most."""
    generator = torch.Generator().manual_seed(seed)
    z = 0.3 * torch.randn(count, 3, generator=generator)
    z[:, 0] += 1.0
    return PublicPairs(z, 0.5 + 0.2 * torch.randn(count, generator=generator) - target, 1.0)


def share(floor: PublicPairs, weights: Tensor) -> Tensor:
    return (floor.offset + weights @ floor.z.T > 0).float().mean(1)


PUBLIC, FLOOR = pairs(200, 0, target=2.0), pairs(150, 1)


def test_who_keeps_the_floor_is_not_touched() -> None:
    weights = torch.tensor([[4.0, 0.5, -0.5], [6.0, 0.0, 1.0]])
    assert torch.equal(values_first(weights, PUBLIC, FLOOR, 4.0, 0.02), weights)


def test_who_breaks_it_is_moved_until_it_holds() -> None:
    weights = torch.tensor([[-5.0, 0.5, -0.5], [5.0, 0.0, 0.0], [-0.6, 3.0, 0.0]])
    alone = share(FLOOR, torch.zeros(1, 3))
    assert share(FLOOR, weights)[0] < 0.1 < alone
    moved = values_first(weights, PUBLIC, FLOOR, 4.0, 0.02)
    assert (share(FLOOR, moved) >= alone - 0.02 - 1e-6).all()
    assert torch.equal(moved[1], weights[1])
    # What the values do not speak of is kept: a smaller w_p would have shrunk it as well.
    assert moved[2, 1] > 2.0


def test_a_tolerance_moves_less_and_a_users_result_is_his_own() -> None:
    weights = torch.tensor([[-3.0, 1.0, 0.0], [-0.7, 0.0, 2.0]])
    strict, lax = (values_first(weights, PUBLIC, FLOOR, 4.0, t) for t in (0.0, 0.3))
    assert ((lax - weights).norm(dim=1) <= (strict - weights).norm(dim=1) + 1e-6).all()
    alone = values_first(weights[:1], PUBLIC, FLOOR, 4.0, 0.0)
    assert torch.allclose(alone, strict[:1], atol=1e-5)


def test_who_has_no_weights_is_the_shared_model_and_stays_so() -> None:
    """Even where others are moved to order more pairs than the shared adapter alone."""
    weights = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    moved = values_first(weights, PUBLIC, pairs(150, 1, target=0.6), 4.0, 0.0)
    assert not moved[0].any()
    assert not torch.equal(moved[1], weights[1])


@pytest.mark.parametrize("empty", ["public", "floor"])
def test_without_public_pairs_weights_stay(empty: str) -> None:
    nothing = PublicPairs(torch.zeros(0, 3), torch.zeros(0), 1.0)
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    given = (nothing, FLOOR) if empty == "public" else (PUBLIC, nothing)
    assert values_first(weights, *given, 4.0, 0.0) is weights


def test_where_no_pull_helps_the_weights_shrink_instead() -> None:
    """Directions in which public pairs train the wrong way for the floor: only less of w_u helps."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(300, 3, generator=generator)
    floor = PublicPairs(z, 1.0 + 0.1 * torch.randn(300, generator=generator), 1.0)
    public = PublicPairs(0.01 * torch.randn(50, 3, generator=generator), torch.zeros(50), 1.0)
    weights = torch.tensor([[3.0, -3.0, 3.0]])
    moved = values_first(weights, public, floor, 4.0, 0.02)
    assert share(floor, weights) < 0.9 <= share(floor, moved)
    assert moved.norm() < weights.norm()
    direction = torch.nn.functional.cosine_similarity(moved, weights)
    assert moved.norm() == 0 or direction > 0.99


def test_each_point_of_the_path_is_a_minimum() -> None:
    """The gradient of equation (1) vanishes where the strongest pull was needed."""
    weights = torch.tensor([[-50.0, 1.0, 0.0]])
    moved = values_first(weights, PUBLIC, FLOOR, 4.0, 0.0)
    pulls = [
        (4.0 * (moved - weights) + PublicPairs(PUBLIC.z, PUBLIC.offset, s).gradient(moved)).norm()
        for s in STRENGTHS
    ]
    assert min(pulls) < 1e-2
