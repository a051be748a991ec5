"""Accounting against an independent grid accountant and known figures."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl_core.errors import PrivacyError
from fl_core.privacy import (
    DpEvent,
    Kind,
    Mechanism,
    epsilon,
    fusion_choice,
    gaussian_epsilon,
    in_view,
    participations,
    renyi_epsilon,
)

Array = npt.NDArray[np.float64]


def events(*mechanisms: Mechanism) -> list[DpEvent]:
    return [
        DpEvent(q, sigma, t, 1.0, "personal" if i % 2 else "shared")
        for i, (q, sigma, t) in enumerate(mechanisms)
    ]


# --- An independent accountant: privacy loss distributions on a plain grid -----------------


def loss_masses(q: float, sigma: float, edges: Array, direction: str) -> Array:
    """Probability of each cell of privacy loss in one Poisson-subsampled Gaussian step.

    remove: L = log(1 - q + q exp((2x - 1) / (2 sigma^2))), x from the mixture; add: -L, x from
    the Gaussian at 0.
    """
    sign = 1.0 if direction == "remove" else -1.0
    inner = np.exp(sign * edges) - (1 - q)
    with np.errstate(divide="ignore"):
        x = sigma**2 * np.log(np.maximum(inner, 0) / q) + 0.5
    below = stats.norm.cdf(x / sigma)
    if direction == "remove":
        below = (1 - q) * below + q * stats.norm.cdf((x - 1) / sigma)
    return np.asarray(np.abs(np.diff(below)))


def grid_epsilon(mechanisms: list[Mechanism], delta: float, reach: float = 40.0, cells: int = 2**19) -> float:
    """Joint epsilon, both directions, losses taken at the cells' middles (no side rounding)."""
    edges = np.linspace(-reach, reach, cells + 1)
    width = edges[1] - edges[0]
    frequencies = np.fft.rfftfreq(cells)
    worst = 0.0
    for direction in ("remove", "add"):
        spectrum = np.ones(cells // 2 + 1, dtype=complex)
        shift = 0.0  # index of loss 0 is cells/2 - 1/2: undone by a phase
        for q, sigma, steps in mechanisms:
            spectrum *= np.fft.rfft(loss_masses(q, sigma, edges, direction)) ** steps
            shift += steps
        # Composed index k means loss (k + shift/2) * width - shift * reach; bring it to the grid.
        first = shift * (width / 2 - reach)
        turn = (first + reach) / width
        masses = np.fft.irfft(spectrum * np.exp(-2j * np.pi * frequencies * (turn % cells)), cells)
        losses = -reach + width * np.arange(cells)
        low, high = 0.0, reach
        for _ in range(50):
            middle = (low + high) / 2
            over = losses > middle
            reached = float(np.sum(masses[over] * -np.expm1(middle - losses[over])))
            low, high = (low, middle) if reached <= delta else (middle, high)
        worst = max(worst, high)
    return worst


CASES: list[tuple[list[Mechanism], float]] = [
    ([(0.2, 1.5, 40)], 1e-5),
    ([(0.2, 1.5, 40), (0.2, 1.5, 40)], 1e-5),
    ([(0.2, 1.5, 40), (0.2, 3.0, 100)], 1e-5),
    ([(0.01, 1.0, 1000)], 1e-5),
    ([(0.05, 0.8, 200)], 1e-5),
    ([(0.1, 1.0, 100)], 1e-4),
    ([(0.25, 1.0, 40)], 1e-3),
    ([(0.2, 0.6, 50)], 1e-4),
    ([(0.1, 8.0, 100)], 1e-6),
    ([(1.0, 4.0, 20), (0.2, 2.0, 20)], 1e-5),
    ([(0.5, 2.0, 10), (0.05, 1.0, 100), (0.9, 6.0, 30)], 1e-5),
    ([(1.0, 4.0, 20)], 1e-5),
    ([(0.2, 40.0, 20)], 1e-5),
]


@pytest.mark.parametrize(("mechanisms", "delta"), CASES)
def test_epsilon_is_just_above_an_independent_accountants(mechanisms: list[Mechanism], delta: float) -> None:
    slow = grid_epsilon(mechanisms, delta)
    ours = epsilon(events(*mechanisms), delta)
    assert slow - 1e-3 <= ours <= max(slow * 1.01, slow + 0.02)
    assert ours <= renyi_epsilon(mechanisms, delta)


@pytest.mark.parametrize(
    ("mechanisms", "delta", "known"),
    [
        # Google's dp_accounting 0.6.0, privacy loss distributions, grid 1e-4 (two decimals to four).
        ([(0.2, 1.5, 40)], 1e-5, 4.71),
        ([(0.2, 1.5, 40)] * 2, 1e-5, 6.70),
        ([(0.01, 1.0, 1000)], 1e-5, 1.829),
        ([(0.05, 0.8, 200)], 1e-5, 7.702),
        ([(0.1, 1.0, 100)], 1e-4, 5.966),
        ([(0.25, 1.0, 40)], 1e-3, 7.953),
        ([(0.2, 0.6, 50)], 1e-4, 23.09),
        ([(1.0, 4.0, 20)], 1e-5, 4.983),
        ([(0.1, 8.0, 100)], 1e-6, 0.518),
    ],
)
def test_epsilon_gives_known_figures(mechanisms: list[Mechanism], delta: float, known: float) -> None:
    ours = epsilon(events(*mechanisms), delta)
    assert known - 0.006 <= ours <= max(known * 1.01, known + 0.02)


@pytest.mark.parametrize(
    ("z", "rounds", "known"), [(7, 6, 1.53), (4, 6, 2.82), (2.5, 6, 4.77), (4, 16, 4.89), (4, 64, 11.0)]
)
def test_gaussian_gives_known_figures(z: float, rounds: int, known: float) -> None:
    assert gaussian_epsilon(math.sqrt(rounds) / z, 1e-6) == pytest.approx(known, abs=0.006)
    assert epsilon(events((1.0, z, rounds)), 1e-6) == pytest.approx(gaussian_epsilon(rounds**0.5 / z, 1e-6))


@given(mu=st.floats(0.01, 30), delta=st.floats(1e-9, 0.4))
@settings(max_examples=100, deadline=None)
def test_gaussian_epsilon_meets_its_delta_and_no_less_would(mu: float, delta: float) -> None:
    eps = gaussian_epsilon(mu, delta)

    def reached(e: float) -> float:
        """An independent form of the same curve, in log space."""
        second = np.exp(e + stats.norm.logcdf(-e / mu - mu / 2))
        return float(stats.norm.cdf(-e / mu + mu / 2) - second)

    assert reached(eps) <= delta * (1 + 1e-6)
    assert eps == 0 or reached(eps * (1 - 1e-4) - 1e-9) > delta * (1 - 1e-6)


def test_no_step_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon(events((0.2, 1.0, 0), (0.2, 0.0, 0)), 1e-5) == 0.0
    assert epsilon(events((0.2, 1.0, 10), (0.2, 0.0, 1)), 1e-5) == math.inf
    assert epsilon(events((0.2, math.inf, 10)), 1e-5) == 0.0
    assert epsilon(events((0.0, 1.0, 10)), 1e-5) == 0.0


def test_cost_depends_on_what_was_done_not_on_how_it_is_listed() -> None:
    whole = epsilon(events((0.2, 1.5, 40)), 1e-5)
    assert epsilon(events((0.2, 1.5, 15), (0.2, 1.5, 25)), 1e-5) == whole
    two = [(0.2, 1.5, 10), (0.3, 2.0, 20)]
    assert epsilon(events(*two), 1e-5) == epsilon(events(*reversed(two)), 1e-5)


def test_cost_is_monotonic() -> None:
    def cost(q: float = 0.2, sigma: float = 1.5, steps: int = 40, delta: float = 1e-5) -> float:
        return epsilon(events((q, sigma, steps)), delta)

    assert cost(steps=39) < cost() < cost(steps=41)
    assert cost(sigma=1.55) < cost() < cost(sigma=1.45)
    assert cost(q=0.19) < cost() < cost(q=0.21)
    assert cost(delta=2e-5) < cost() < cost(delta=5e-6)


@pytest.mark.parametrize("mechanism", [(0.2, 0.1, 40), (0.2, 0.3, 1000), (0.2, 0.01, 5)])
def test_extreme_values_fall_back_to_the_renyi_bound(mechanism: Mechanism) -> None:
    found = epsilon(events(mechanism), 1e-5)
    assert 10 < found < math.inf
    assert found == renyi_epsilon([mechanism], 1e-5)


def test_a_rate_near_one_costs_what_one_does() -> None:
    whole = epsilon(events((1.0, 0.5, 3)), 1e-5)
    assert epsilon(events((0.999999, 0.5, 3)), 1e-5) == pytest.approx(whole, rel=0.01)


def test_a_delta_near_rounding_error_still_gives_a_bound() -> None:
    assert 9 < epsilon(events((0.2, 1.5, 40)), 1e-15) < 12


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon(events((0.2, 1.0, 1)), delta)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 1.1},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"steps": -1},
        {"clip": 0.0},
    ],
)
def test_an_impossible_event_is_refused(wrong: dict[str, float]) -> None:
    fields = {
        "sampling_rate": 0.2,
        "noise_multiplier": 1.0,
        "steps": 1,
        "clip": 1.0,
        "adapter": "shared",
    } | wrong
    with pytest.raises(PrivacyError, match=next(iter(wrong))):
        DpEvent(**fields)  # type: ignore[arg-type]


# --- What was done -------------------------------------------------------------------------


def test_a_unit_has_one_relation_and_one_view() -> None:
    upload, own = DpEvent(0.2, 1.0, 3, 1.0, "shared"), DpEvent(0.2, 1.0, 3, 1.0, "personal")
    joint, user = DpEvent(0.2, 1.0, 3, 1.0, "both"), participations(4.0, 6, 0.5)
    assert upload.relation == "add or remove one record" and user.relation == "leave out one user's uploads"
    made = [upload, own, joint, user, fusion_choice(1.0)]
    assert [event.view for event in made] == ["server", "personal", "server", "public", "personal"]
    assert in_view(made, "server") == [upload, joint]
    assert in_view(made, "personal") == [upload, own, joint, made[4]]
    assert in_view(made, "public") == [user]
    with pytest.raises(PrivacyError, match="relation='replace one record'"):
        DpEvent(0.2, 1.0, 3, 1.0, "shared", relation="replace one record")
    with pytest.raises(PrivacyError, match="one unit a cost"):
        epsilon(made, 1e-5)


def test_both_adapters_in_one_step_are_one_charge_and_in_two_steps_two() -> None:
    """facts of dp_accounting's PLD: 4.71 for one, 6.70 jointly for two."""
    joint = epsilon([DpEvent(0.2, 1.5, 40, 1.0, "both")], 1e-5)
    apart = epsilon([DpEvent(0.2, 1.5, 40, 1.0, "shared"), DpEvent(0.2, 1.5, 40, 1.0, "personal")], 1e-5)
    assert joint == pytest.approx(4.71, abs=0.02) and apart == pytest.approx(6.70, abs=0.03)


def test_the_servers_choice_of_clients_amplifies_nothing() -> None:
    with pytest.raises(PrivacyError, match=r"sampling_rate=0\.1.*must be 1 for users"):
        DpEvent(0.1, 4.0, 6, 1.0, "shared", unit="user")


@pytest.mark.parametrize(("mechanism", "pure"), [("exponential", 0.0), ("gaussian", 1.0)])
def test_pure_epsilon_goes_with_its_mechanism(mechanism: Kind, pure: float) -> None:
    with pytest.raises(PrivacyError, match="pure_epsilon"):
        DpEvent(1.0, 1.0, 1, 1.0, "fusion", mechanism=mechanism, pure_epsilon=pure)
