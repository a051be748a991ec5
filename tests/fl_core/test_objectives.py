"""Losses by hand, and that no example looks at another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fl_core.objectives import bradley_terry_loss, dpo_loss, kto_loss, sft_loss, vote_loss


def one(value: float) -> Tensor:
    return torch.tensor([value])


def test_votes_by_hand() -> None:
    """At score 0: log 2.  At score ln 3: sigma = 3/4, so -log 3/4 agreed, -log 1/4 disagreed."""
    assert vote_loss(one(0.0), one(1.0)).item() == pytest.approx(math.log(2))
    assert vote_loss(one(math.log(3)), one(1.0)).item() == pytest.approx(math.log(4 / 3))
    assert vote_loss(one(math.log(3)), one(-1.0)).item() == pytest.approx(math.log(4))


def test_bradley_terry_by_hand() -> None:
    assert bradley_terry_loss(one(2.0), one(2.0)).item() == pytest.approx(math.log(2))
    assert bradley_terry_loss(one(5.0), one(5.0 - math.log(3))).item() == pytest.approx(math.log(4 / 3))


def test_dpo_by_hand() -> None:
    """beta (gain - loss) = 0.5 * ((-3 + 5) - (-4 + 4 - 2 ln 3 + 2)) = ln 3."""
    loss = dpo_loss(one(-3.0), one(-4.0), one(-5.0), one(-6.0 + 2 * math.log(3)), 0.5)
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    same = dpo_loss(one(-3.0), one(-4.0), one(-3.0), one(-4.0), 0.5)
    assert same.item() == pytest.approx(math.log(2))


def test_kto_by_hand() -> None:
    """1 - sigma(label * beta * gain): a gain of 2 ln 3 at beta 1/2 leaves 1/4 or 3/4."""
    gain = one(2 * math.log(3) - 7)
    assert kto_loss(gain, one(-7.0), one(1.0), 0.5).item() == pytest.approx(0.25)
    assert kto_loss(gain, one(-7.0), one(-1.0), 0.5).item() == pytest.approx(0.75)


def test_sft_is_the_mean_of_the_response_alone() -> None:
    assert sft_loss(one(-6.0), one(4.0)).item() == 1.5


def test_losses_stay_finite_at_extreme_scores() -> None:
    for far in (-1e4, 1e4):
        assert vote_loss(one(far), one(1.0)).isfinite().all()
        assert dpo_loss(one(far), one(0.0), one(0.0), one(0.0), 1.0).isfinite().all()
        assert kto_loss(one(far), one(0.0), one(1.0), 1.0).isfinite().all()


@pytest.mark.parametrize("name", ["vote", "bradley_terry", "dpo", "kto", "sft"])
def test_no_example_looks_at_another(name: str) -> None:
    """The Jacobian of losses by inputs is diagonal, and a row alone has the same loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator)
    label = torch.tensor([1.0, -1, 1, 1, -1, -1])
    losses = {
        "vote": lambda v: vote_loss(v[0], label[: v.shape[1]]),
        "bradley_terry": lambda v: bradley_terry_loss(v[0], v[1]),
        "dpo": lambda v: dpo_loss(v[0], v[1], v[2], v[3], 0.3),
        "kto": lambda v: kto_loss(v[0], v[1], label[: v.shape[1]], 0.3),
        "sft": lambda v: sft_loss(v[0], torch.arange(1.0, 1.0 + v.shape[1])),
    }[name]
    jacobian = torch.autograd.functional.jacobian(losses, x)  # [E, 4, E]
    across = jacobian * (1 - torch.eye(6))[:, None]
    assert not across.any()
    assert jacobian.any()
    assert torch.allclose(losses(x)[:2], losses(x[:, :2]))


@pytest.mark.parametrize("label", [1.0, -1.0])
def test_a_step_against_the_gradient_moves_a_score_towards_its_label(label: float) -> None:
    for loss in (
        lambda v: vote_loss(v, one(label)),
        lambda v: kto_loss(v, one(0.0), one(label), 0.5),
        lambda v: label * bradley_terry_loss(v, one(0.0)),
        lambda v: label * dpo_loss(v, one(0.0), one(0.0), one(0.0), 0.5),
        lambda v: label * sft_loss(v, one(3.0)),
    ):
        score = one(0.2).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(score).sum(), score)
        assert -gradient.item() * label > 0
