"""The steps around the gradients: optimizers, sampling, plans."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core.cohort import (
    AdamState,
    StepPlan,
    adam_step,
    cohort_noise,
    sample_records,
    sgd_step,
    train_cohort,
)
from fl_core.errors import DataError, PrivacyError
from fl_core.noise import Purpose, SimulationNoise
from tests.fl_core.tiny_models import make_setup, mixed_examples

NOISE = SimulationNoise(4)


def gradients(steps: int) -> Tensor:
    """[steps, 3, 50] float64, with a row and a column of zeros and sizes from 1e-6 to 1e3."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** torch.linspace(-6, 3, 50)
    found = torch.randn(steps, 3, 50, generator=generator).double() * sizes
    found[:, 1], found[:, :, 7] = 0.0, 0.0
    return found


# --- Optimizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_pytorchs(decay: float) -> None:
    flat = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).double()
    leaf = torch.nn.Parameter(flat.clone())
    optimizer = torch.optim.SGD([leaf], lr=0.05, weight_decay=decay)
    for gradient in gradients(5):
        flat = sgd_step(flat, gradient, 0.05, decay)
        leaf.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(flat, leaf, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_pytorchs_adamw(decay: float) -> None:
    """Zero gradients, tiny and large ones; each row has moments of its own."""
    flat = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).double()
    leaf = torch.nn.Parameter(flat.clone())
    optimizer = torch.optim.AdamW([leaf], lr=0.05, weight_decay=decay)
    state: AdamState | None = None
    for gradient in gradients(7):
        flat, state = adam_step(flat, gradient, state, 0.05, decay)
        leaf.grad = gradient.clone()
        optimizer.step()
    assert state is not None
    assert state.steps == 7
    assert torch.allclose(flat, leaf, rtol=1e-11, atol=1e-12)


def test_adams_first_step_by_hand() -> None:
    """m/(1-b1) = g and v/(1-b2) = g^2, so the first step is lr * sign(g)."""
    moved, _ = adam_step(torch.zeros(1, 3), torch.tensor([[4.0, -0.1, 0.0]]), None, 0.5)
    assert moved[0].tolist() == pytest.approx([-0.5, 0.5, 0.0])


# --- Sampling and noise --------------------------------------------------------------------


def test_a_users_sample_depends_on_its_key_alone() -> None:
    examples = mixed_examples([0] * 30 + [1] * 20 + [2] * 25, 7)
    arguments = (0.5, NOISE, 3, 1, Purpose.SHARED_SAMPLE)
    together = sample_records(examples, [5, 9, 2], *arguments)
    own = replace(examples.take(np.arange(30, 50)), user=np.zeros(20, dtype=np.int64))
    assert np.array_equal(sample_records(own, [9], *arguments), together[30:50])
    assert not np.array_equal(sample_records(own, [8], *arguments), together[30:50])


def test_the_sampling_rate_is_kept_and_one_takes_everything() -> None:
    examples = mixed_examples([0] * 20_000, 7)
    taken = sample_records(examples, [1], 0.3, NOISE, 0, 0, Purpose.SHARED_SAMPLE)
    assert abs(taken.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    assert sample_records(examples, [1], 1.0, NOISE, 0, 0, Purpose.SHARED_SAMPLE).all()


def test_steps_and_adapters_have_samples_of_their_own() -> None:
    examples = mixed_examples([0] * 64, 7)
    keys = [(0, 0, Purpose.SHARED_SAMPLE), (0, 1, Purpose.SHARED_SAMPLE), (1, 0, Purpose.SHARED_SAMPLE)]
    keys.append((0, 0, Purpose.PERSONAL_SAMPLE))
    samples = {tuple(sample_records(examples, [1], 0.5, NOISE, *key).tolist()) for key in keys}
    assert len(samples) == 4


def test_unsorted_examples_are_refused() -> None:
    """Slices by user would give one user's samples to another."""
    with pytest.raises(DataError, match="sorted by user"):
        sample_records(mixed_examples([1, 0], 7), [0, 1], 0.5, NOISE, 0, 0, Purpose.SHARED_SAMPLE)


def test_noise_rows_are_the_users_own() -> None:
    rows = cohort_noise((2, 9), [3, 4], 2.0, NOISE, 1, 0, Purpose.SHARED_STEP)
    alone = cohort_noise((1, 9), [4], 2.0, NOISE, 1, 0, Purpose.SHARED_STEP)
    assert torch.equal(rows[1], alone[0])
    assert not torch.equal(rows[0], rows[1])
    assert not cohort_noise((2, 9), [3, 4], 0.0, NOISE, 1, 0, Purpose.SHARED_STEP).any()


# --- Plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": math.inf}, "clip=inf"),
        ({"clip": math.nan}, "clip=nan"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sigma": math.nan}, "sigma=nan"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"denominator": 0.0}, "denominator=0.0"),
        ({"sigma": 1.0, "clip": None}, "noise bounds nothing without a clip"),
    ],
    ids=str,
)
def test_a_plan_that_would_break_the_guarantee_is_refused(
    changed: dict[str, float | None], words: str
) -> None:
    options = {"steps": 1, "clip": 1.0, **changed}
    with pytest.raises(PrivacyError, match=words):
        StepPlan(**options)  # type: ignore[arg-type]


def test_the_noise_scale_is_sigma_times_the_clip() -> None:
    assert StepPlan(1, clip=0.5, sigma=3.0).noise_std == 1.5
    assert StepPlan(1).noise_std == 0.0


# --- Training ------------------------------------------------------------------------------


def test_one_step_by_hand() -> None:
    """theta - lr ((sum of clipped gradients) / L + public) - lr wd theta."""
    setup = make_setup("llama", "b_only", "subspace")
    examples = mixed_examples([0, 0, 2], 7)
    public = torch.randn(setup.adapter.shared_layout.size)
    plan = StepPlan(1, "sgd", 0.2, clip=0.5, denominator=4.0, weight_decay=0.3)
    moved = train_cohort(setup.engine, setup.state, examples, [0, 1, 2], "shared", plan, NOISE, 0, public)
    sums, _ = setup.engine.clipped_gradients(examples, setup.state, "shared", 0.5)
    wanted = setup.state.shared * (1 - 0.2 * 0.3) - 0.2 * (sums / 4.0 + public)
    assert torch.allclose(moved.shared, wanted, atol=1e-6)
    assert torch.equal(moved.personal, setup.state.personal)
    assert setup.state.shared.shape[0] == 1  # the given state stays as it was


def test_each_part_moves_alone() -> None:
    setup = make_setup("llama", "components", "components")
    examples = mixed_examples([0, 1, 2], 7)
    plan = StepPlan(1, "sgd", 0.1)
    for part, moves in (("shared", (True, False)), ("personal", (False, True)), ("both", (True, True))):
        moved = train_cohort(setup.engine, setup.state, examples, [0, 1, 2], part, plan, NOISE, 0)
        assert (not torch.equal(moved.shared, setup.state.shared.expand_as(moved.shared))) == moves[0]
        assert (not torch.equal(moved.personal, setup.state.personal)) == moves[1]


def test_no_steps_change_nothing() -> None:
    setup = make_setup("llama", "lora", "lora")
    moved = train_cohort(
        setup.engine, setup.state, mixed_examples([0], 7), [0, 1, 2], "personal", StepPlan(0), NOISE, 0
    )
    assert torch.equal(moved.personal, setup.state.personal)


def test_training_lowers_the_loss_it_is_made_for() -> None:
    for objective in ("reward", "dpo", "kto", "sft"):
        setup = make_setup("llama", "components", "components", objective)
        examples = mixed_examples([0] * 4 + [1] * 4, 7, form="pairs")
        plan = StepPlan(15, "adam", 0.02, denominator=4.0)
        moved = train_cohort(setup.engine, setup.state, examples, [0, 1, 2], "both", plan, NOISE, 0)

        def gap(state: object) -> float:
            chosen = setup.engine.scores(examples.user, examples.chosen, state)  # noqa: B023
            rejected = setup.engine.scores(examples.user, examples.rejected, state)  # noqa: B023
            return float((chosen - rejected * (objective != "sft")).mean())  # noqa: B023

        assert gap(moved) > gap(setup.state) + 0.1, objective
