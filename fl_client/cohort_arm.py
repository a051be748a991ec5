"""Users who need passes of their own: adapters in the trunk, or log-probability objectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_client.arm_trainer import ArmTrainer, chosen_fusion, parts
from fl_client.cohort import Cohort
from fl_client.store import PersonalState
from fl_core import fusion
from fl_core.cohort import StepPlan, train_cohort
from fl_core.config import RunConfig
from fl_core.engine import CohortEngine, CohortState, Examples, Part, clipped, example_norms
from fl_core.errors import PrivacyError
from fl_core.features import FeatureMap
from fl_core.prefix_store import PrefixStores
from fl_core.records import NO_TEXT, Split
from fl_core.shared import (
    Arm,
    Arrays,
    from_arrays,
)
from fl_core.stopwatch import timed

USERS_AT_A_TIME = 64
"""Users whose parameters are in memory at once; a user's result does not depend on it."""
FLOOR_PAIRS_PER_USER_PASS = 24
"""Public values pairs that the floor looks at where every user needs passes of its own."""
SYNCHRONISED_EVERY = 5
"""Rounds between FDLoRA's synchronisations as printed (its H)."""


class CohortArm(ArmTrainer):
    """Users whose adapters reach into the trunk, or objectives on log-probabilities."""

    def __init__(
        self,
        config: RunConfig,
        arm: Arm,
        cohort: Cohort,
        out: Path,
        features: FeatureMap | None,
        prefixes: PrefixStores,
    ) -> None:
        super().__init__(config, arm, cohort, out, features)
        store = prefixes.of(self.trunk)
        self.engine = CohortEngine(self.trunk, self.adapter, cohort.texts.tokens, config.train, store=store)

    def personal_steps_of(self, server_round: int) -> int:
        """The same in every round."""
        return 0 if self.adapter.personal is None else self.config.train.personal_steps

    def train_round(
        self,
        state: PersonalState,
        server_round: int,
        shared: Arrays,
        uploading: npt.NDArray[np.bool_],
        training: npt.NDArray[np.bool_],
    ) -> tuple[Arrays, int]:
        """Local steps on a copy of the shared adapter, then on the personal one."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        total = torch.zeros(len(theta))
        after = self.store.rows(self.cohort.users, state.before.shape[1])
        for rows in _parts(np.arange(len(self.keys))):
            after[rows] = state.before[rows]
        public = self._values_gradient(theta) if uploading.any() else None
        personal = replace(self._plan("personal"), steps=self.personal_steps_of(server_round))
        synchronises = self._synchronises(server_round)
        for rows in _parts(np.flatnonzero(uploading)):
            members = self._members(theta, state.before[rows])
            moved = self._trained(members, rows, "shared", self._plan("shared"), server_round, public)
            update = moved.shared - theta
            if self.user_clip is not None:
                update = clipped(update, example_norms(update), self.user_clip)
            total += update.sum(0)
            if synchronises:
                after[rows] = moved.shared.numpy()
        for rows in _parts(np.flatnonzero(training)) if personal.steps and not synchronises else ():
            members = self._members(theta, state.before[rows])
            after[rows] = self._trained(members, rows, "personal", personal, server_round).personal.numpy()
        self.record_round(state, server_round, after, uploading, training)
        return self.reply(total), int(uploading.sum())

    def _trained(
        self,
        members: CohortState,
        rows: npt.NDArray[np.int64],
        part: Part,
        plan: StepPlan,
        server_round: int,
        public: Tensor | None = None,
    ) -> CohortState:
        """The users at ``rows`` after a plan's steps on their TRAIN records."""
        keys, examples = [self.keys[row] for row in rows], self.train_examples.of_users(rows)
        return train_cohort(
            self.engine, members, examples, keys, part, plan, self.noise, server_round, public
        )

    def train_final(
        self,
        state: PersonalState,
        server_round: int,
        shared: Arrays,
        training: npt.NDArray[np.bool_],
        fusing: npt.NDArray[np.bool_],
    ) -> None:
        """Train the personal adapters on the final shared one, then fuse."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        plan = replace(self._plan("personal"), steps=self.config.train.final_steps)
        held = self.cohort.examples(Split.HOLDBACK)
        after = self.store.rows(self.cohort.users, state.before.shape[1])
        chosen = np.empty_like(state.fusion)
        for rows in _parts(np.arange(len(self.keys))):
            members = self._members(theta, state.before[rows])
            trained = self._trained(members, rows, "personal", plan, server_round)
            here = torch.from_numpy(training[rows])[:, None]
            trained = replace(trained, personal=torch.where(here, trained.personal, members.personal))
            after[rows] = trained.personal.numpy()
            fused = self._fuse(trained, rows, held.of_users(rows), server_round)
            chosen[rows] = np.where(fusing[rows][:, None], fused, state.fusion[rows])
        done = replace(state, server_round=server_round, after=after, fusion=chosen, final=True)
        self.store.save(replace(done, personal_steps=state.personal_steps_before + training * plan.steps))

    def upload_personal(self) -> tuple[Arrays, int]:
        """FDLoRA's line 7 as printed: the sum of *personal* adapters.  Leaks by design."""
        if not self.config.federation.leak_personal_weights:
            raise PrivacyError(
                "personal adapters never leave a device; federation.leak-personal-weights is not set"
            )
        own = self.load().after
        names = dict(self.adapter.shared_layout.shapes)
        parts = self.adapter.personal_layout.split(own.sum(0).astype(np.float32))
        parts = {name.replace("head.vector", "head.common"): value for name, value in parts.items()}
        if {name: value.shape for name, value in parts.items()} != names:
            raise PrivacyError(
                "fdlora-as-printed: personal and shared adapters must have one form, kind and rank"
            )
        return parts, len(own)

    def _synchronises(self, server_round: int) -> bool:
        """FDLoRA as printed: every H-th round the shared copy replaces the personal adapter."""
        return self.config.method == "fdlora-as-printed" and server_round % SYNCHRONISED_EVERY == 0

    def _members(self, theta: Tensor, personal: npt.NDArray[np.float32]) -> CohortState:
        ones = torch.ones(len(personal), 2)
        return CohortState(theta[None], torch.from_numpy(personal), ones)

    def _plan(self, part: str) -> StepPlan:
        train, shared = self.config.train, part == "shared"
        return StepPlan(
            steps=train.local_steps if shared else train.personal_steps,
            optimizer=train.inner,
            lr=train.inner_lr if shared else train.personal_lr,
            clip=self.shared_clip if shared else self.clip,
            sigma=self.sigmas.shared if shared else self.sigmas.personal,
            rate=self.shared_rate if shared else self.rate,
            denominator=train.expected_batch,
            weight_decay=0.0 if shared else train.weight_decay,
        )

    def _values_gradient(self, theta: Tensor) -> Tensor | None:
        """[D_s] mean gradient of the public pairs at the prior, times their weight."""
        weight = self.config.train.values_weight
        values = self.cohort.texts.public_pairs(self.config.train.values_pairs)
        if weight == 0 or len(values) == 0 or self.config.train.objective == "sft":
            return None
        prior = CohortState(theta[None], torch.from_numpy(self.prior)[None], torch.tensor([[1.0, 0.0]]))
        sums, _ = self.engine.clipped_gradients(values, prior, "shared", None)
        return weight * sums[0] / len(values)

    @timed("values and fusion")
    def _fuse(
        self, state: CohortState, rows: npt.NDArray[np.int64], held: Examples, server_round: int
    ) -> npt.NDArray[np.float32]:
        """[U, 2] (w_s, w_p) of the users at ``rows``; ``held`` are their HOLDBACK records."""
        grid = fusion.candidates(step=0.5, most=1.0)
        grid = grid[grid[:, 0] == 1.0]
        users = len(rows)
        judges = self.cohort.texts.floor
        values = judges.take(np.arange(min(len(judges), FLOOR_PAIRS_PER_USER_PASS)))
        everyone = np.arange(users, dtype=np.int64)
        repeated = Examples(
            np.repeat(everyone, len(values)),
            np.tile(values.chosen, users),
            np.tile(values.rejected, users),
            np.ones(users * len(values), dtype=np.int64),
        )
        utility, floor = np.zeros((users, len(grid))), torch.zeros(users, len(grid), len(values))
        for column, weights in enumerate(grid):
            mixed = replace(state, fusion=torch.tensor(weights).float().expand(users, 2))
            scores = torch.sigmoid(example_margins(self.engine, held, mixed)).numpy()
            utility[:, column] = fusion.sum_scores(scores[:, None], held.user, users)[:, 0]
            floor[:, column] = example_margins(self.engine, repeated, mixed).view(users, len(values))
        keys = np.array(self.keys)[rows]
        return chosen_fusion(self, keys, grid, utility, floor, server_round)


def _parts(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Users a part at a time."""
    return (rows[part] for part in parts(len(rows), USERS_AT_A_TIME))


def example_margins(engine: CohortEngine, examples: Examples, state: CohortState) -> Tensor:
    """[E]: score(chosen) - score(rejected) of pairs, label * score of votes."""
    chosen = engine.scores(examples.user, examples.chosen, state)
    pairs = np.flatnonzero(examples.rejected != NO_TEXT)
    margin = chosen * torch.from_numpy(examples.label).float()
    other = engine.scores(examples.user[pairs], examples.rejected[pairs], state)
    return margin.index_add(0, torch.from_numpy(pairs), -other)
