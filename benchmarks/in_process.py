"""What an arm that was trained in this process gives its users on held-out records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_client.store import PersonalState
from fl_client.trainer import NodeTrainer
from fl_core.records import Split
from fl_core.shared import Arrays
from simulation.held_out import held_out_pairs
from simulation.metrics import right, user_means
from simulation.scores import arm_scorer


def user_accuracies(
    node: NodeTrainer,
    arm: str,
    theta: Arrays | None,
    state: PersonalState | None,
    split: Split,
    pairs_each: int | None = None,
) -> npt.NDArray[np.float64]:
    """[U] each user's accuracy on a split's pairs (at most ``pairs_each``), NaN where there is none."""
    population = node.cohort.population
    pairs = held_out_pairs(population, split, pairs_each, node.config.seed)
    margins = arm_scorer(node, node.arm(arm), theta, state).pairs(pairs)
    return user_means(right(margins), pairs.user, len(population.users))
