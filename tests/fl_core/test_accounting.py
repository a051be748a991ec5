"""Costs of many users against the scalar functions, and all of them against Google's dp_accounting."""

from __future__ import annotations

import math
import time

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.accounting import gate_epsilon, gate_epsilons
from fl_core.errors import PrivacyError
from fl_core.privacy import DpEvent, Mechanism, epsilon, fusion_choice, participations, renyi_epsilon


def events(*mechanisms: Mechanism) -> list[DpEvent]:
    return [DpEvent(q, sigma, t, 1.0, "shared") for q, sigma, t in mechanisms]


# --- Against privacy loss distributions of another library ------------------------------


def pld_epsilon(mechanisms: list[Mechanism], delta: float, grid: float = 1e-4) -> float:
    accountant = PLDAccountant(value_discretization_interval=grid)
    for q, sigma, steps in mechanisms:
        step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(step, steps)
    return float(accountant.get_epsilon(delta))


SAMPLED: list[tuple[list[Mechanism], float]] = [
    ([(0.01, 1.0, 1000)], 1e-5),
    ([(0.05, 0.8, 200)], 1e-5),
    ([(0.1, 1.0, 100)], 1e-4),
    ([(0.25, 1.0, 40)], 1e-3),
    ([(0.2, 0.6, 50)], 1e-4),
    ([(0.1, 8.0, 100)], 1e-6),
    ([(0.2, 1.5, 40)], 1e-5),
    ([(0.2, 1.5, 40), (0.2, 1.5, 40)], 1e-5),
    ([(0.2, 1.5, 40), (0.2, 3.0, 100)], 1e-5),
    ([(0.2, 2.28, 60)], 1e-5),
    ([(0.5, 2.0, 10), (0.05, 1.0, 100), (0.9, 6.0, 30)], 1e-5),
    ([(1.0, 4.0, 20), (0.2, 2.0, 20)], 1e-5),
    ([(0.001, 0.7, 2000)], 1e-6),
    ([(0.02, 1.1, 500), (0.3, 5.0, 40)], 1e-7),
]


@pytest.mark.parametrize(("mechanisms", "delta"), SAMPLED)
def test_epsilon_is_just_above_privacy_loss_distributions(mechanisms: list[Mechanism], delta: float) -> None:
    reference = pld_epsilon(mechanisms, delta)
    ours = epsilon(events(*mechanisms), delta)
    assert reference - 0.001 <= ours <= max(reference * 1.01, reference + 0.02)
    assert ours <= gate_epsilon(events(*mechanisms), delta), "what holds adaptively costs no less"


@pytest.mark.parametrize(
    ("z", "steps", "delta"),
    [
        (4.0, 20, 1e-5),
        (7.0, 6, 1e-6),
        (4.0, 6, 1e-6),
        (2.5, 6, 1e-6),
        (4.0, 16, 1e-6),
        (4.0, 64, 1e-6),
        (1.0, 1, 1e-5),
    ],
)
def test_without_sampling_epsilon_is_exact(z: float, steps: int, delta: float) -> None:
    # One Gaussian of the same mu: composing a discretised loss would add the grid's own error.
    reference = pld_epsilon([(1.0, z / math.sqrt(steps), 1)], delta, grid=2e-4)
    record = epsilon(events((1.0, z, steps)), delta)
    assert record == pytest.approx(reference, rel=1e-3)
    assert (
        epsilon([participations(z, steps, 0.5)], delta)
        == record
        == gate_epsilon(events((1.0, z, steps)), delta)
    )


def test_half_the_noise_would_be_noticed() -> None:
    """The bounds above are tight enough to tell a wrong sigma, rate or number of steps."""
    reference = pld_epsilon([(0.2, 1.5, 40)], 1e-5)
    for wrong in ((0.2, 1.4, 40), (0.22, 1.5, 40), (0.2, 1.5, 44)):
        assert (
            not reference - 0.001 <= epsilon(events(wrong), 1e-5) <= max(reference * 1.01, reference + 0.02)
        )


# --- Many users at once -----------------------------------------------------------------

STEPS = ((0.2, 1.5), (0.05, 0.8), (1.0, 4.0), (1.0, 9.0))


@given(
    rows=st.lists(st.lists(st.integers(0, 200), min_size=4, max_size=4), min_size=1, max_size=20),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
@settings(max_examples=60, deadline=None)
def test_every_user_costs_what_the_scalar_function_says(rows: list[list[int]], delta: float) -> None:
    rows = [*rows, [0, 0, *rows[0][2:]], [0, 0, 0, 0]]
    found = gate_epsilons(rows, STEPS, delta)
    for row, cost in zip(rows, found, strict=True):
        made = events(*((q, sigma, count) for (q, sigma), count in zip(STEPS, row, strict=True)))
        assert cost == pytest.approx(gate_epsilon(made, delta), rel=1e-9, abs=1e-12)


def test_a_hundred_thousand_users_take_less_than_three_seconds() -> None:
    generator = np.random.default_rng(0)
    steps = [
        (0.2, 1.5),
        (0.2, 3.0),
        (0.05, 0.8),
        (0.1, 1.0),
        (1.0, 4.0),
        (0.01, 1.0),
        (0.3, 2.0),
        (0.25, 1.0),
    ]
    counts = generator.integers(0, 60, (100_000, len(steps)))
    counts[::2, [0, 1, 2, 3, 5, 6]] = 0  # half of them without subsampling
    gate_epsilons(counts[:1], steps, 1e-5)  # the divergences of a step are computed once
    started = time.perf_counter()
    found = gate_epsilons(counts, steps, 1e-5)
    assert time.perf_counter() - started < 3.0
    for row in generator.integers(0, 100_000, 50):
        made = [(q, sigma, int(n)) for (q, sigma), n in zip(steps, counts[row], strict=True) if n]
        assert found[row] == pytest.approx(gate_epsilon(events(*made), 1e-5), rel=1e-9)


def test_steps_without_noise_and_steps_that_release_nothing() -> None:
    steps = [(0.2, 0.0), (0.0, 1.0), (0.3, math.inf), (0.2, 1.5), (1.0, 0.0)]
    found = gate_epsilons([[1, 0, 0, 0, 0], [0, 9, 9, 0, 0], [0, 9, 9, 40, 0], [0, 0, 0, 0, 1]], steps, 1e-5)
    assert found[0] == found[3] == math.inf and found[1] == 0
    assert found[2] == pytest.approx(renyi_epsilon([(0.2, 1.5, 40)], 1e-5), rel=1e-12)
    assert gate_epsilons(np.zeros((0, 1)), [(0.2, 1.0)], 1e-5).shape == (0,)


@pytest.mark.parametrize("counts", [[1.0, 2.0], [[1.0, 2.0]], [[-1.0]]])
def test_counts_of_another_form_are_refused(counts: list[float]) -> None:
    with pytest.raises(PrivacyError, match=r"counts .*\[users, 1\]"):
        gate_epsilons(counts, [(0.2, 1.0)], 1e-5)


def test_pure_epsilons_add_up() -> None:
    both = [*events((1.0, 4.0, 20)), fusion_choice(0.5), fusion_choice(0.25)]
    for cost in (epsilon, gate_epsilon):
        assert cost(both, 1e-5) == pytest.approx(cost(both[:1], 1e-5) + 0.75)
        assert cost(both[1:], 1e-5) == 0.75
