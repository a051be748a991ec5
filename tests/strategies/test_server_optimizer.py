"""The server's steps against cases worked by hand and against PyTorch's optimizers."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.config import RunConfig
from strategies.server_optimizer import (
    RULES,
    OptimizerState,
    adam,
    nesterov,
    rates,
    server_step,
    sgd,
    shrunk,
)


def _one(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([value], dtype=np.float64)}


def _theta(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": np.array([value], dtype=np.float32)}


def test_sgd_at_rate_one_is_averaging() -> None:
    """theta 2, mean change -0.5: the mean of the clients' parameters, 1.5."""
    moved, state = sgd(_theta(2.0), _one(-0.5), OptimizerState(), 1.0)
    assert moved["x"].dtype == np.float32 and float(moved["x"][0]) == 1.5 and state.step == 1


def test_nesterov_by_hand() -> None:
    """d = 1 twice, lr 0.1: b = 1, 1.9; steps 0.1 (1 + .9) = .19 and 0.1 (1 + .9 * 1.9) = .271."""
    moved, state = nesterov(_theta(), _one(1.0), OptimizerState(), 0.1)
    assert float(moved["x"][0]) == pytest.approx(0.19)
    moved, state = nesterov(moved, _one(1.0), state, 0.1)
    assert float(moved["x"][0]) == pytest.approx(0.461)
    assert float(state.first["x"][0]) == pytest.approx(1.9)


def test_adam_s_first_step_is_the_rate_in_the_update_s_direction() -> None:
    """Bias-corrected: m' = d, sqrt(v') = |d|, whatever the scale of d."""
    for scale in (1e-5, 1.0, 1e5):
        moved, _ = adam(_theta(), _one(-scale), OptimizerState(), 0.01)
        assert float(moved["x"][0]) == pytest.approx(-0.01, rel=2e-3)


@pytest.mark.parametrize("name", sorted(RULES))
def test_agrees_with_torch_on_minus_the_update_as_gradient(name: str) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = {
        "sgd": lambda: torch.optim.SGD([parameter], lr=0.1),
        "nesterov": lambda: torch.optim.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda: torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-8),
    }[name]()
    theta, state = {"x": np.zeros(5, dtype=np.float32)}, OptimizerState()
    rng = np.random.default_rng(0)
    for _ in range(6):
        d = rng.normal(size=5)
        parameter.grad = torch.from_numpy(-d)
        optimizer.step()
        theta, state = RULES[name](theta, {"x": d}, state, 0.1)
    np.testing.assert_allclose(theta["x"], parameter.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES))
def test_pure(name: str) -> None:
    theta, d, state = _theta(1.0), _one(2.0), OptimizerState()
    RULES[name](theta, d, state, 0.1)
    assert float(theta["x"][0]) == 1.0 and float(d["x"][0]) == 2.0 and state == OptimizerState()


def test_rates_by_hand() -> None:
    """Constant for a third of the run, then linearly to 0; the head's are a factor higher."""
    names = ("head.common", "head.bias", "trunk.0.q_proj.B", "ahead.x")
    for share, left in ((0.0, 1.0), (1 / 3, 1.0), (0.5, 0.75), (2 / 3, 0.5), (0.9, 0.15), (1.0, 0.0)):
        now = rates(names, 0.02, 10.0, share)
        assert list(now) == list(names)
        assert now["head.common"] == now["head.bias"] == pytest.approx(0.2 * left)
        assert now["trunk.0.q_proj.B"] == now["ahead.x"] == pytest.approx(0.02 * left)


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_array_moves_at_its_own_rate(name: str) -> None:
    theta = {key: np.zeros(2, dtype=np.float32) for key in ("head.common", "trunk.B")}
    d = {key: np.array([1.0, -2.0]) for key in theta}
    moved, _ = RULES[name](theta, d, OptimizerState(), rates(theta, 0.01, 10.0, 0.0))
    np.testing.assert_allclose(moved["head.common"], 10 * moved["trunk.B"], rtol=1e-6)
    assert np.abs(moved["trunk.B"]).min() > 0


def test_the_prior_of_the_head_counts_in_records() -> None:
    """At the optimum of n users' records, the sum of gradients equals precision * theta."""
    theta = {
        name: np.full(2, 3.0, np.float32) for name in ("head.common", "head.components", "head.bias", "x.B")
    }
    update = {name: np.full(2, 4.0 * 3.0 / (10 * 8.0)) for name in theta}
    moved = shrunk(update, theta, precision=4.0, users=10, denominator=8.0)
    for name in ("head.common", "head.components"):
        np.testing.assert_allclose(moved[name], 0.0, atol=1e-7)
    for name in ("head.bias", "x.B"):
        np.testing.assert_array_equal(moved[name], update[name])


def test_a_private_arm_steps_by_its_own_factor_and_sgd_by_its_one_rate() -> None:
    theta = {"head.common": np.zeros(2, np.float32), "trunk.x.B": np.zeros(2, np.float32)}
    update = {name: np.array([1.0, -2.0]) for name in theta}
    config = RunConfig.from_flat({"privacy.server-factor": 0.5, "federation.server-lr": 0.1})

    def first(config: RunConfig, arm: str) -> dict[str, np.ndarray]:
        return server_step(config, arm, theta, update, 5, OptimizerState())[0]

    plain, private = first(config, "dual"), first(config, "dual_dp")
    np.testing.assert_allclose(private["head.common"], plain["head.common"] / 2, rtol=1e-6)
    np.testing.assert_allclose(plain["head.common"], 10 * plain["trunk.x.B"], rtol=1e-6)
    personal = RunConfig.from_flat({**config.to_flat(), "privacy.scope": "personal"})
    np.testing.assert_array_equal(first(personal, "dual_dp")["head.common"], plain["head.common"])
    sgd = RunConfig.from_flat({**config.to_flat(), "federation.server": "sgd"})
    np.testing.assert_allclose(first(sgd, "dual")["trunk.x.B"], [0.1, -0.2], rtol=1e-6)
