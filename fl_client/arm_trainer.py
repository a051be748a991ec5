"""What all arms' trainers share: structure, noise, budget, the store, and fusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_client.cohort import Cohort
from fl_client.store import PersonalState, PersonalStore
from fl_core import fusion
from fl_core.config import RunConfig
from fl_core.features import FeatureMap
from fl_core.noise import NoiseSource, SimulationNoise, SystemNoise
from fl_core.records import Split
from fl_core.shared import (
    Arm,
    Arrays,
    arm_sigmas,
    build_arm,
    to_arrays,
)
from fl_core.trunk import Trunk


class ArmTrainer:
    """What both kinds of arms share: structure, noise, budget and the store."""

    def __init__(
        self,
        config: RunConfig,
        arm: Arm,
        cohort: Cohort,
        out: Path,
        features: FeatureMap | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        self.config, self.arm, self.cohort = config, arm, cohort
        self.trunk, self.adapter = build_arm(config, arm, cohort.base, features, trunk)
        self.sigmas = arm_sigmas(config, arm)
        system = config.privacy.noise == "system"
        self.noise: NoiseSource = SystemNoise() if system else SimulationNoise(config.seed)
        self.clip = config.privacy.clip if arm.private else None
        self.rate = config.privacy.sampling_rate if arm.private else 1.0
        self.private_uploads = config.noised_uploads(arm.name)
        self.user_clip = config.privacy.user_clip if config.noised_release(arm.name) else None
        self.shared_clip = self.clip if config.noised(arm.name) else None
        self.shared_rate = self.rate if self.private_uploads else 1.0
        self.store = PersonalStore(out / "arms" / arm.name / "personal")
        self.keys = [int(user) for user in cohort.users]
        self.train_examples = cohort.examples(Split.TRAIN)
        self.prior = self.adapter.initial_personal().numpy()

    def load(self) -> PersonalState:
        """The hosted users' personal state."""
        return self.store.load(self.cohort.users, self.prior)

    def senders(self, state: PersonalState, server_round: int) -> npt.NDArray[np.bool_]:
        """[U] who sends an update in a round: who is there and, under user-level DP, may still.

        Then a user sends in at most ``privacy.participations`` of the run's rounds: in a simulation
        those of a public schedule, which spreads users evenly; in each case he counts himself.
        """
        online, config = self.cohort.online(server_round), self.config
        if self.user_clip is None:
            return online
        period = -(-config.federation.rounds // config.privacy.participations)
        due = (server_round + self.cohort.users) % period == 0
        if config.federation.users_per_node == 1:
            due[:] = True  # a server that samples devices is their schedule
        left = state.shared_steps_before < config.privacy.participations * config.train.local_steps
        return np.asarray(online & due & left, dtype=bool)

    def reply(self, update_sum: Tensor) -> Arrays:
        """The only thing that leaves: named sums of updates."""
        return to_arrays(self.adapter.shared_layout, update_sum)

    def record_round(
        self,
        state: PersonalState,
        server_round: int,
        after: npt.NDArray[np.float32],
        sent: npt.NDArray[np.bool_],
        personal: npt.NDArray[np.int64],
    ) -> None:
        """Save the personal numbers after a round, and the steps that were really made.

        ``sent`` [U]: who sent an update; ``personal`` [U]: steps on each personal adapter.
        """
        self.store.save(
            replace(
                state,
                server_round=server_round,
                after=after,
                shared_steps=state.shared_steps_before + sent * self.config.train.local_steps,
                personal_steps=state.personal_steps_before + personal,
            )
        )


def parts(count: int, most: int) -> Iterator[slice]:
    """``count`` users, at most ``most`` at a time."""
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))


def chosen_fusion(
    trainer: ArmTrainer,
    users: npt.NDArray[np.int64],
    grid: npt.NDArray[np.float64],
    utility: npt.NDArray[np.float64],
    floor: Tensor,
    server_round: int,
) -> npt.NDArray[np.float32]:
    """The chosen (w_s, w_p) [U, 2] of ``users``; ``floor`` [U, G, V] are margins on the public pairs.

    Without such pairs (V = 0) there is no floor: every candidate is allowed.
    """
    privacy, private = trainer.config.privacy, trainer.arm.private
    if private and privacy.fusion_epsilon == 0:
        utility = np.zeros_like(utility)
    loss, correct = np.zeros(utility.shape), np.zeros(utility.shape)
    if floor.shape[2]:
        loss = -torch.nn.functional.logsigmoid(floor).mean(2).numpy()
        correct = fusion.ordered(floor.numpy()).mean(axis=2)
    chosen = fusion.fuse(
        utility,
        loss,
        correct,
        weights=grid,
        shared_index=fusion.index_of(grid, fusion.SHARED_ONLY),
        margin=trainer.config.fusion_margin,
        tolerance=trainer.config.fusion_tolerance,
        keep_trained_values=True,
        l1=fusion.PRIVATE_L1 if private else fusion.L1,
        noise_epsilon=privacy.fusion_epsilon if private else 0.0,
        noise=trainer.noise,
        users=users,
        server_round=server_round,
    )
    return np.asarray(grid[chosen], dtype=np.float32)
