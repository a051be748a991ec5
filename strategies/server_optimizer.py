"""How the server applies a round's mean update: pure functions over named arrays.

The mean update ``d`` is a descent direction, so ``g = -d`` plays the gradient's part
(Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 1).  All sums are in float64;
the parameters stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fl_core.config import RunConfig
from fl_core.wire import Arrays

Update = Mapping[str, npt.NDArray[np.float64]]

MOMENTUM = 0.9
"""mu of Nesterov momentum, as in DiLoCo and FDLoRA."""

BETA_1, BETA_2, TAU = 0.9, 0.99, 1e-8
"""Adam's decays as in Reddi et al., section 5; tau smaller than theirs, see ``adam``."""


_SHRUNK = ("head.common", "head.components")


@dataclass(frozen=True)
class OptimizerState:
    """What survives a round: steps taken, first and second moments (float64, empty at first)."""

    step: int = 0
    first: Update = field(default_factory=dict)
    second: Update = field(default_factory=dict)


Rates = float | Mapping[str, float]
"""One learning rate for all arrays, or one an array's name."""

Rule = Callable[[Arrays, Update, OptimizerState, Rates], tuple[Arrays, OptimizerState]]


def sgd(theta: Arrays, d: Update, state: OptimizerState, lr: Rates) -> tuple[Arrays, OptimizerState]:
    """theta + lr d.  With lr = 1 and d a mean of parameter changes: plain federated averaging."""
    return _moved(theta, d, lr), OptimizerState(state.step + 1)


def nesterov(theta: Arrays, d: Update, state: OptimizerState, lr: Rates) -> tuple[Arrays, OptimizerState]:
    """Momentum with look-ahead: b <- mu b + d; theta <- theta + lr (d + mu b).

    The outer optimizer of DiLoCo (Douillard et al. 2023, section 2) and of FDLoRA, in the form
    of Sutskever et al. (2013) that optimizer libraries use.
    """
    b = {name: MOMENTUM * _of(state.first, name, d[name]) + d[name] for name in d}
    direction = {name: d[name] + MOMENTUM * b[name] for name in d}
    return _moved(theta, direction, lr), OptimizerState(state.step + 1, first=b)


def adam(theta: Arrays, d: Update, state: OptimizerState, lr: Rates) -> tuple[Arrays, OptimizerState]:
    """FedAdam: Reddi et al. 2021, Algorithm 2.

    m <- b1 m + (1 - b1) d;  v <- b2 v + (1 - b2) d^2;  theta <- theta + lr m' / (sqrt(v') + tau).

    Two deviations: m' and v' carry Kingma and Ba's bias correction, and tau is 1e-8 and not
    1e-3, because d may be a mean gradient whose scale is far below that of a parameter change.
    """
    step = state.step + 1
    m = {name: BETA_1 * _of(state.first, name, d[name]) + (1 - BETA_1) * d[name] for name in d}
    v = {name: BETA_2 * _of(state.second, name, d[name]) + (1 - BETA_2) * d[name] ** 2 for name in d}
    c1, c2 = 1 - BETA_1**step, 1 - BETA_2**step
    direction = {name: (m[name] / c1) / (np.sqrt(v[name] / c2) + TAU) for name in d}
    return _moved(theta, direction, lr), OptimizerState(step, first=m, second=v)


def shrunk(update: Update, theta: Arrays, precision: float, users: float, denominator: float) -> Update:
    """The mean update of gradient sums, with that of a Gaussian prior on the reward head.

    Users' sums of gradients were divided by ``denominator`` and their mean taken over ``users``;
    a prior of ``precision`` records around 0 adds -precision theta / (users * denominator).  The
    bias has none.
    """
    pull = precision / max(1.0, users * denominator)
    return {name: value - pull * theta[name] if name in _SHRUNK else value for name, value in update.items()}


RULES: Mapping[str, Rule] = {"sgd": sgd, "nesterov": nesterov, "adam": adam}
"""By the name that ``federation.server`` holds."""


def _of(moments: Update, name: str, like: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return moments[name] if name in moments else np.zeros_like(like)


def rates(names: Iterable[str], lr: float, head_factor: float, round_share: float) -> dict[str, float]:
    """A learning rate for each array: the reward head's is ``head_factor`` times the others'.

    ``round_share`` in [0, 1) is how much of the run is over: rates stay for the first third and
    then fall linearly to 0.
    """
    now = lr * min(1.0, 1.5 * (1.0 - round_share))
    return {name: now * (head_factor if name.startswith("head.") else 1.0) for name in names}


def server_step(
    config: RunConfig, arm: str, theta: Arrays, update: Update, everyone: float, state: OptimizerState
) -> tuple[Arrays, OptimizerState]:
    """The shared adapter after a round's mean update: prior, learning rates, rule.

    ``everyone``: how many users the federation has, of whom a round's are a sample.  Averaging
    (sgd, nesterov) takes its one rate as it is; adam's are those of ``rates``.
    """
    federation, rate = config.federation, config.federation.server_lr
    by_name: Rates = rate
    if config.train.local_steps == 1:
        update = shrunk(update, theta, federation.head_precision, everyone, config.train.expected_batch)
    if federation.server == "adam":
        done = min(1.0, state.step / max(1, federation.rounds))
        lr = rate * (config.privacy.server_factor if config.noised(arm) else 1.0)
        by_name = rates(theta, lr, federation.head_factor, done)
    return RULES[federation.server](theta, update, state, by_name)


def _moved(theta: Arrays, direction: Update, lr: Rates) -> Arrays:
    by_name = lr if isinstance(lr, Mapping) else dict.fromkeys(theta, lr)
    return {
        name: (value + by_name[name] * direction[name]).astype(np.float32) for name, value in theta.items()
    }
