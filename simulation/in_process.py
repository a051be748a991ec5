"""Train an arm in this process, without Flower: the same trainers, the same server optimizer.

For measurements that train many times; figures of whole runs come from ``duet simulate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.release import released_shared
from fl_core.shared import Arm, Arrays, initial_shared
from strategies.aggregation import round_mean
from strategies.server_optimizer import OptimizerState, server_step
from strategies.user_level import server_noise


def rounds_of(node: NodeTrainer, config: RunConfig, arm: str) -> Iterator[tuple[int, Arrays]]:
    """(round, shared adapter after it) of every round, with one node that hosts all users."""
    theta, state = initial_shared(config, arm), OptimizerState()
    noise = server_noise(config.privacy, config.seed)
    for server_round in range(1, config.federation.rounds + 1):
        sums, users = node.train(arm, server_round, theta)
        if users:
            update, everyone = round_mean(config, arm, [(sums, users)], noise, server_round)
            theta, state = server_step(config, arm, theta, update, everyone, state)
        yield server_round, theta


def train_arm(
    config: RunConfig, population: Path, out: Path, arm: str, watch: Callable[[int], None] = lambda _: None
) -> tuple[NodeTrainer, Arrays]:
    """All rounds of an arm, then its personal phase; returns the node and the shared adapter."""
    node = NodeTrainer(config, population, out, 0, 1)
    theta = initial_shared(config, arm)
    if Arm.named(arm).kind != "local":
        for server_round, theta in rounds_of(node, config, arm):  # noqa: B007 - the last one is kept
            watch(server_round)
        theta = released_shared(config, arm, theta, population, out)
    if Arm.named(arm).kind != "shared":
        node.personalize(arm, config.federation.rounds + 1, theta)
    return node, theta
