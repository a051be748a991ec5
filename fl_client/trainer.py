"""What a node does for the users that it hosts: rounds, personalisation, fusion.

A node hosts a cohort: one user on a device, a shard of users in a simulation.  Its replies are
(sum of the users' updates, number of users) and nothing else; personal numbers stay in the
``PersonalStore``.  ``HeadArm`` serves users who share texts and differ in the reward head
(one pass a text, ``fl_core.shared_text``); ``CohortArm`` everything else.

Privacy contract.  Unit: one record of one user; relation: add or remove one record.  Every
update that leaves is a sum of per-example gradients clipped to C, plus noise of sigma C for
each user, made with Poisson rate q; sigma is derived from the target in ``arm_sigmas`` before
the first step, and the steps made are counted in the store.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_client.store import PersonalState, PersonalStore
from fl_core import fusion
from fl_core.base_model import BaseModel, load_base, render_prompt
from fl_core.cohort import StepPlan, cohort_noise, sample_records, train_cohort
from fl_core.config import RunConfig, TrainConfig
from fl_core.engine import CohortEngine, CohortState, Examples
from fl_core.errors import PrivacyError
from fl_core.features import FeatureMap
from fl_core.privacy import Purpose, SimulationNoise
from fl_core.private_head import (
    HeadExamples,
    PublicPairs,
    TextTable,
    head_examples,
    head_gradient_sums,
    newton_step,
)
from fl_core.records import NO_TEXT, Population, Split
from fl_core.shared import (
    Arm,
    Arrays,
    arm_sigmas,
    build_arm,
    from_arrays,
    to_arrays,
)
from fl_core.shared_text import PrefixStore, SharedTextEngine, pooled_features
from fl_core.trunk import Tokens, Trunk

NEWTON_STEPS = 8
VALUES_PAIRS_PER_USER = 8
"""Public values pairs that one user trains the shared adapter on, where there are many users."""
FLOOR_PAIRS_PER_USER_PASS = 24
"""Public values pairs that the floor looks at where every user needs passes of its own."""


class Cohort:
    """The data of a node: its users' records, all texts as tokens, and the public pairs.

    Texts of the values pairs are appended to the population's texts: ``values`` are the public
    pairs, ``hidden_values`` those that only an evaluation may look at.
    """

    def __init__(
        self, config: RunConfig, population: Population, base: BaseModel, users: npt.NDArray[np.int64]
    ) -> None:
        self.config, self.population, self.base, self.users = config, population, base, users
        rendered = [(text.prompt, text.response) for text in population.texts]
        first = len(rendered)
        for pair in population.values:
            rendered += [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
        self.tokens = tuple(_tokens(base, prompt, response, config.train) for prompt, response in rendered)
        public = np.array([pair.public for pair in population.values], dtype=bool)
        self.values = _values(np.flatnonzero(public) * 2 + first)
        self.hidden_values = _values(np.flatnonzero(~public) * 2 + first)
        self.federated = np.array([population.users[int(user)].federated for user in users], dtype=bool)

    def examples(self, split: Split) -> Examples:
        """The hosted users' records of a split, ``user`` counted within the node."""
        records = self.population.records.of_split(split)
        place = np.full(len(self.population.users), -1, dtype=np.int64)
        place[self.users] = np.arange(len(self.users))
        records = records.take(place[records.user] >= 0)
        return Examples(
            place[records.user],
            records.chosen.astype(np.int64),
            records.rejected.astype(np.int64),
            records.label.astype(np.int64),
        )

    def everybodys_train_examples(self) -> Examples:
        """TRAIN records of all users of the population; only their texts, which are public, are used."""
        records = self.population.records.of_split(Split.TRAIN)
        columns = (records.user, records.chosen, records.rejected, records.label)
        return Examples(*(column.astype(np.int64) for column in columns))

    def online(self, server_round: int) -> npt.NDArray[np.bool_]:
        """[U] which federated users take part in a round (simulated availability)."""
        if all(self.population.users[int(user)].availability >= 1.0 for user in self.users):
            return self.federated
        rows = []
        for user in self.users:
            generator = np.random.default_rng([self.config.seed, int(user), server_round, 77])
            rows.append(generator.random() < self.population.users[int(user)].availability)
        return np.asarray(self.federated & np.array(rows, dtype=bool))


def _values(chosen: npt.NDArray[np.int64]) -> Examples:
    """Values pairs whose better answers stand at ``chosen``, each followed by its worse one."""
    zero = np.zeros(len(chosen), dtype=np.int64)
    return Examples(zero, chosen, chosen + 1, zero + 1)


def _tokens(base: BaseModel, prompt: str, response: str, train: TrainConfig) -> Tokens:
    """A text as tokens; of the prompt at most ``train.prompt_tokens`` are kept, its last ones."""
    given = prompt if train.prompt_tokens else ""
    ids, mask = render_prompt(base.tokenizer, given, response, train.max_tokens)
    over = max(0, mask.index(True) - max(train.prompt_tokens, 4))
    return Tokens(tuple(ids[over:]), tuple(mask[over:]))


class _ArmTrainer:
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
        self.noise = SimulationNoise(config.seed)
        self.clip = config.privacy.clip if arm.private else None
        self.rate = config.privacy.sampling_rate if arm.private else 1.0
        self.store = PersonalStore(out / "arms" / arm.name / "personal")
        self.keys = [int(user) for user in cohort.users]
        self.train_examples = cohort.examples(Split.TRAIN)
        self.prior = self.adapter.initial_personal().numpy()

    def load(self) -> PersonalState:
        """The hosted users' personal state."""
        return self.store.load(self.cohort.users, self.prior)

    def reply(self, update_sum: Tensor) -> Arrays:
        """The only thing that leaves: named sums of updates."""
        return to_arrays(self.adapter.shared_layout, update_sum)

    def record_round(
        self,
        state: PersonalState,
        server_round: int,
        after: Tensor,
        online: npt.NDArray[np.bool_],
        personal: int,
    ) -> None:
        """Save the personal numbers after a round, and the steps that were really made."""
        self.store.save(
            replace(
                state,
                server_round=server_round,
                after=after.numpy().astype(np.float32),
                shared_steps=state.shared_steps_before + online * self.config.train.local_steps,
                personal_steps=state.personal_steps_before + online * personal,
            )
        )


class HeadArm(_ArmTrainer):
    """Users share texts and differ in the reward head: one pass a text serves all."""

    def __init__(
        self,
        config: RunConfig,
        arm: Arm,
        cohort: Cohort,
        out: Path,
        features: FeatureMap,
        store: PrefixStore,
    ) -> None:
        super().__init__(config, arm, cohort, out, features, store.trunk)
        own = self.train_examples
        values = self._users_values()
        together = Examples(
            *(np.concatenate(pair) for pair in zip(_columns(own), _columns(values), strict=True))
        )
        self.engine = SharedTextEngine(self.trunk, self.adapter, cohort.tokens, together, store=store)
        self.round_texts = texts_of(together)
        self.all_texts = texts_of(together, cohort.examples(Split.HOLDBACK), cohort.values)
        self.private = np.arange(len(together)) < len(own)
        self.shards = config.text_shards
        self.shard = schedule(cohort.population, together, self.shards)

    def _users_values(self) -> Examples:
        """Public values pairs dealt out to the users, who all train the shared part on their own.

        Each sees a few; together they see all.  The deal depends on a user's number alone.
        """
        count = min(len(self.cohort.values), self.config.train.values_pairs)
        each = max(min(count, VALUES_PAIRS_PER_USER), -(-count // len(self.cohort.population.users)))
        places = (self.cohort.users[:, None] * each + np.arange(each)) % max(1, count)
        rows = np.repeat(np.arange(len(self.keys), dtype=np.int64), each)
        return replace(self.cohort.values.take(places.reshape(-1)), user=rows)

    def train(self, server_round: int, shared: Arrays) -> tuple[Arrays, int]:
        """One round: at a cycle's start the private weights, then the shared gradient given them."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        state = self.load().at_start_of(server_round)
        online = self.cohort.online(server_round)
        weights, steps = torch.from_numpy(state.before), 0
        if (server_round - 1) % self.shards == 0 and self.adapter.personal is not None:
            steps = self.config.train.personal_steps
            weights = self._personal_round(theta, weights, online, server_round)
        taken = self._sampled(server_round, online, Purpose.SHARED_SAMPLE, 0)
        coefficients, bias = self._coefficients(theta, weights)
        weight = self._weights(taken, online, server_round)
        total, _ = self.engine.clipped_sum(theta, coefficients, bias, weight, self.clip, only=self.private)
        total = total + self._noise_sum(online, server_round)
        self.record_round(state, server_round, weights, online, steps)
        return self.reply(-total / self.config.train.expected_batch), int(online.sum())

    def personalize(self, server_round: int, shared: Arrays) -> int:
        """Fit every hosted user's private weights on the final shared adapter, then fuse."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        state = self.load().at_start_of(server_round)
        table = self.engine.features(theta, self.all_texts)
        problem, public = self._problem(theta, table), self._public(theta, table)
        everyone = np.ones(len(self.keys), dtype=bool)
        weights = torch.from_numpy(state.before)
        if self.arm.private:
            steps = self.config.train.final_steps
            weights = self._private_steps(problem, public, weights, everyone, server_round, steps)
        else:
            steps = NEWTON_STEPS
            weights = self._newton(problem, public, weights, everyone, steps)
        chosen = self._fuse(theta, table, weights, server_round)
        done = replace(state, server_round=server_round, after=weights.numpy(), fusion=chosen, final=True)
        self.store.save(replace(done, personal_steps=state.personal_steps_before + steps))
        return len(self.keys)

    # One round ---------------------------------------------------------------------------

    def _sampled(
        self, server_round: int, users: npt.NDArray[np.bool_], purpose: Purpose, step: int
    ) -> npt.NDArray[np.bool_]:
        taken = sample_records(
            self.train_examples, self.keys, self.rate, self.noise, server_round, step, purpose
        )
        return taken & users[self.train_examples.user]

    def _coefficients(self, theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """c_u [E, R+1] and bias [E] of each example: its own user's."""
        users = torch.from_numpy(self.engine.examples.user)
        if self.adapter.personal is None:
            weights = torch.zeros(len(self.keys), 1)
        mixing, bias = weights[:, :-1], weights[:, -1]
        rows = torch.cat([torch.ones(len(self.keys), 1), mixing], dim=1)
        return rows[users], bias[users] + self.adapter.shared_layout.view(theta, "head.bias")

    def _weights(
        self, taken: npt.NDArray[np.bool_], online: npt.NDArray[np.bool_], server_round: int
    ) -> Tensor:
        """[E] 1 for sampled records of the round's texts; a user's public pairs are averaged."""
        train, user = self.config.train, self.engine.examples.user
        due = self.shard == (server_round - 1) % self.shards
        public = due & ~self.private & online[user]
        pairs = np.bincount(user[public], minlength=len(self.keys))[user]
        weight = np.where(public, train.values_weight * train.expected_batch / np.maximum(pairs, 1), 0.0)
        weight[self.private] = (due[self.private] & taken).astype(np.float64)
        return torch.from_numpy(weight).float()

    def _noise_sum(self, online: npt.NDArray[np.bool_], server_round: int) -> Tensor:
        total = torch.zeros(self.adapter.shared_layout.size)
        if not self.arm.private:
            return total
        if self.sigmas.shared <= 0:
            raise PrivacyError(f"arm {self.arm.name!r}: no noise was calibrated for its shared steps")
        std, shape = self.sigmas.shared * self.config.privacy.clip, (1, len(total))
        for key in (key for key, here in zip(self.keys, online, strict=True) if here):
            total += cohort_noise(shape, [key], std, self.noise, server_round, 0, Purpose.SHARED_STEP)[0]
        return total

    def _personal_round(
        self, theta: Tensor, weights: Tensor, online: npt.NDArray[np.bool_], server_round: int
    ) -> Tensor:
        steps = self.config.train.personal_steps
        table = self.engine.features(theta, self.round_texts)
        problem, public = self._problem(theta, table), self._public(theta, table)
        if self.arm.private:
            return self._private_steps(problem, public, weights, online, server_round, steps)
        return self._newton(problem, public, weights, online, steps)

    def _problem(self, theta: Tensor, table: TextTable) -> HeadExamples:
        return head_examples(self.adapter, theta, table, self.train_examples)

    def _public(self, theta: Tensor, table: TextTable) -> PublicPairs:
        """The public values pairs as each user's own fit sees them."""
        pairs = self.cohort.values.take(
            np.arange(min(len(self.cohort.values), self.config.train.values_pairs))
        )
        values = head_examples(self.adapter, theta, table, pairs)
        return PublicPairs(values.z, values.offset, self.config.train.personal_values)

    # The private weights -----------------------------------------------------------------

    def _private_steps(
        self,
        problem: HeadExamples,
        public: PublicPairs,
        weights: Tensor,
        users: npt.NDArray[np.bool_],
        server_round: int,
        steps: int,
    ) -> Tensor:
        """DP-SGD on each user's weights; returns the mean of the second half of the iterates."""
        train = self.config.train
        std = self.sigmas.personal * self.config.privacy.clip
        here = torch.from_numpy(users)[:, None]
        kept, tail = torch.zeros_like(weights), 0
        for step in range(steps):
            taken = self._sampled(server_round, users, Purpose.PERSONAL_SAMPLE, step)
            sums = head_gradient_sums(problem, weights, torch.from_numpy(taken).float(), self.clip)
            shape = (len(weights), weights.shape[1])
            noise = cohort_noise(shape, self.keys, std, self.noise, server_round, step, Purpose.PERSONAL_STEP)
            own = sums + noise + self.rate * (public.gradient(weights) + train.prior_precision * weights)
            gradient = own / train.expected_batch
            weights = torch.where(here, weights - train.personal_lr * gradient, weights)
            if step >= steps // 2:
                kept, tail = kept + weights, tail + 1
        return kept / tail if tail else weights

    def _newton(
        self,
        problem: HeadExamples,
        public: PublicPairs,
        weights: Tensor,
        users: npt.NDArray[np.bool_],
        steps: int,
    ) -> Tensor:
        here = torch.from_numpy(users)[:, None]
        sampled = torch.ones(len(problem.user))
        for _ in range(steps):
            moved = newton_step(problem, weights, sampled, self.config.train.prior_precision, public)
            weights = torch.where(here, moved, weights)
        return weights

    # Fusion ------------------------------------------------------------------------------

    def _fuse(
        self, theta: Tensor, table: TextTable, weights: Tensor, server_round: int
    ) -> npt.NDArray[np.float32]:
        """[U, 2] (w_s, w_p) by ``fusion.fuse``, within the floor of the public values pairs."""
        grid = fusion.candidates()
        held = self.cohort.examples(Split.HOLDBACK)
        if self.arm.kind == "local":
            grid = np.array([row for row in grid if row[0] == 1.0])
        problem = head_examples(self.adapter, theta, table, held)
        margins = _mixed(problem, weights, torch.from_numpy(grid).float())
        utility = fusion.sum_scores(torch.sigmoid(margins).numpy(), held.user, len(self.keys))
        values = head_examples(self.adapter, theta, table, self.cohort.values)
        common, own = values.offset, weights @ values.z.T
        floor = common[None, None] * torch.from_numpy(grid[:, :1, None].transpose(2, 0, 1)).float()
        floor = floor + own[:, None] * torch.from_numpy(grid[:, 1:, None].transpose(2, 0, 1)).float()
        return _fused(self, grid, utility, floor, server_round)


class CohortArm(_ArmTrainer):
    """Users whose adapters reach into the trunk, or objectives on log-probabilities."""

    def __init__(
        self, config: RunConfig, arm: Arm, cohort: Cohort, out: Path, features: FeatureMap | None
    ) -> None:
        super().__init__(config, arm, cohort, out, features)
        self.engine = CohortEngine(self.trunk, self.adapter, cohort.tokens, config.train)

    def train(self, server_round: int, shared: Arrays) -> tuple[Arrays, int]:
        """Local steps on a copy of the shared adapter, then on the personal one."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        state = self.load().at_start_of(server_round)
        online = self.cohort.online(server_round)
        rows = np.flatnonzero(online)
        keys = [self.keys[row] for row in rows]
        total, after = torch.zeros(len(theta)), torch.from_numpy(state.before).clone()
        if len(rows):
            members = self._members(theta, state.before[rows])
            examples = _of_users(self.train_examples, rows)
            plan, public = self._plan("shared"), self._values_gradient(theta)
            trained = train_cohort(
                self.engine, members, examples, keys, "shared", plan, self.noise, server_round, public
            )
            total = (trained.shared - theta).sum(0)
            if self._round_steps():
                plan = replace(self._plan("personal"), steps=self._round_steps())
                own = train_cohort(
                    self.engine, members, examples, keys, "personal", plan, self.noise, server_round
                )
                after[torch.from_numpy(rows)] = own.personal
        self.record_round(state, server_round, after, online, self._round_steps())
        return self.reply(total), len(rows)

    def personalize(self, server_round: int, shared: Arrays) -> int:
        """Train every hosted user's personal adapter on the final shared one, then fuse."""
        theta = from_arrays(self.adapter.shared_layout, shared)
        state = self.load().at_start_of(server_round)
        plan = replace(self._plan("personal"), steps=self.config.train.final_steps)
        members = self._members(theta, state.before)
        trained = train_cohort(
            self.engine, members, self.train_examples, self.keys, "personal", plan, self.noise, server_round
        )
        chosen = self._fuse(trained, server_round)
        done = replace(
            state, server_round=server_round, after=trained.personal.numpy(), fusion=chosen, final=True
        )
        self.store.save(replace(done, personal_steps=state.personal_steps_before + plan.steps))
        return len(self.keys)

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

    def overwrite_personal(self, shared: Arrays) -> None:
        """FDLoRA's periodic synchronisation as printed: the shared copy replaces the personal."""
        state = self.load()
        flat = from_arrays(self.adapter.shared_layout, shared).numpy()
        self.store.save(replace(state, after=np.repeat(flat[None], len(state.user), axis=0)))

    def _round_steps(self) -> int:
        return 0 if self.adapter.personal is None else self.config.train.personal_steps

    def _members(self, theta: Tensor, personal: npt.NDArray[np.float32]) -> CohortState:
        ones = torch.ones(len(personal), 2)
        return CohortState(theta[None], torch.from_numpy(personal), ones)

    def _plan(self, part: str) -> StepPlan:
        train, shared = self.config.train, part == "shared"
        return StepPlan(
            steps=train.local_steps if shared else train.personal_steps,
            optimizer=train.inner,
            lr=train.inner_lr if shared else train.personal_lr,
            clip=self.clip,
            sigma=self.sigmas.shared if shared else self.sigmas.personal,
            rate=self.rate,
            denominator=train.expected_batch,
            weight_decay=0.0 if shared else train.weight_decay,
        )

    def _values_gradient(self, theta: Tensor) -> Tensor | None:
        """[D_s] mean gradient of the public pairs at the prior, times their weight."""
        weight, values = self.config.train.values_weight, self.cohort.values
        if weight == 0 or len(values) == 0 or self.config.train.objective == "sft":
            return None
        prior = CohortState(theta[None], torch.from_numpy(self.prior)[None], torch.tensor([[1.0, 0.0]]))
        sums, _ = self.engine.clipped_gradients(values, prior, "shared", None)
        return weight * sums[0] / len(values)

    def _fuse(self, state: CohortState, server_round: int) -> npt.NDArray[np.float32]:
        grid = fusion.candidates(step=0.5, most=1.0)
        grid = grid[grid[:, 0] == 1.0]
        held, users = self.cohort.examples(Split.HOLDBACK), len(self.keys)
        values = self.cohort.values.take(np.arange(min(len(self.cohort.values), FLOOR_PAIRS_PER_USER_PASS)))
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
        return _fused(self, grid, utility, floor, server_round)


def _fused(
    trainer: _ArmTrainer,
    grid: npt.NDArray[np.float64],
    utility: npt.NDArray[np.float64],
    floor: Tensor,
    server_round: int,
) -> npt.NDArray[np.float32]:
    """The chosen (w_s, w_p) [U, 2]; ``floor`` [U, G, V] are margins on the public pairs."""
    privacy, private = trainer.config.privacy, trainer.arm.private
    if private and privacy.fusion_epsilon == 0:
        utility = np.zeros_like(utility)
    loss = -torch.nn.functional.logsigmoid(floor).mean(2).numpy()
    chosen = fusion.fuse(
        utility,
        loss,
        fusion.ordered(floor.numpy()).mean(axis=2),
        weights=grid,
        shared_index=fusion.index_of(grid, fusion.SHARED_ONLY),
        margin=trainer.config.fusion_margin,
        tolerance=trainer.config.fusion_tolerance,
        noise_epsilon=privacy.fusion_epsilon if private else 0.0,
        noise=trainer.noise,
        users=np.array(trainer.keys),
        server_round=server_round,
    )
    return np.asarray(grid[chosen], dtype=np.float32)


def example_margins(engine: CohortEngine, examples: Examples, state: CohortState) -> Tensor:
    """[E]: score(chosen) - score(rejected) of pairs, label * score of votes."""
    chosen = engine.scores(examples.user, examples.chosen, state)
    pairs = np.flatnonzero(examples.rejected != NO_TEXT)
    margin = chosen * torch.from_numpy(examples.label).float()
    other = engine.scores(examples.user[pairs], examples.rejected[pairs], state)
    return margin.index_add(0, torch.from_numpy(pairs), -other)


def schedule(population: Population, examples: Examples, shards: int) -> npt.NDArray[np.int64]:
    """[E] in which round of a cycle an example is due: decided by its prompt and text alone.

    Pairs go by their prompt, so that all texts of one prompt are due together.
    """
    keys = np.empty(len(examples), dtype=np.int64)
    names: dict[int, int] = {}
    for place, (chosen, rejected) in enumerate(zip(examples.chosen, examples.rejected, strict=True)):
        text = int(chosen)
        if text not in names:
            known = population.texts[text] if text < len(population.texts) else None
            name = str(text) if known is None else known.prompt if rejected != NO_TEXT else known.response
            names[text] = zlib.crc32(name.encode())
        keys[place] = names[text]
    return keys % shards


def _mixed(problem: HeadExamples, weights: Tensor, grid: Tensor) -> Tensor:
    """[E, G] margins under each (w_s, w_p) of the grid."""
    own = (problem.z * weights[problem.user]).sum(1)
    return problem.offset[:, None] * grid[:, 0] + own[:, None] * grid[:, 1]


def _columns(examples: Examples) -> tuple[npt.NDArray[np.int64], ...]:
    return examples.user, examples.chosen, examples.rejected, examples.label


def _of_users(examples: Examples, rows: npt.NDArray[np.int64]) -> Examples:
    """The examples of some users of the node, renumbered by their place in ``rows``."""
    place = np.full(int(max(examples.user.max(initial=0), rows.max(initial=0))) + 1, -1)
    place[rows] = np.arange(len(rows))
    kept = examples.take(np.flatnonzero(place[examples.user] >= 0))
    return replace(kept, user=place[kept.user])


class NodeTrainer:
    """The users of one node, and the arms that they train; see the module's docstring.

    User i of the population belongs to node i mod ``partitions``.
    """

    def __init__(
        self, config: RunConfig, population: Path, out: Path, partition: int, partitions: int
    ) -> None:
        people = Population.load(population)
        users = np.arange(partition, len(people.users), partitions, dtype=np.int64)
        self.config, self.out = config, out
        self.cohort = Cohort(config, people, load_base(config.model, config.dtype), users)
        self._arms: dict[str, HeadArm | CohortArm] = {}
        self._map: FeatureMap | None = None
        trunk, _ = build_arm(config, Arm.named("dual"), self.cohort.base)
        self._store = PrefixStore(trunk, self.cohort.tokens)

    def train(self, arm: str, server_round: int, shared: Arrays) -> tuple[Arrays, int]:
        """One round of an arm: (sum of the users' updates, number of users)."""
        return self.arm(arm).train(server_round, shared)

    def personalize(self, arm: str, server_round: int, shared: Arrays) -> int:
        """Personalise all hosted users on the final shared adapter; returns their number."""
        return self.arm(arm).personalize(server_round, shared)

    def upload_personal(self, arm: str, server_round: int) -> tuple[Arrays, int]:
        """Only for ``fdlora-as-printed``: the sum of personal adapters."""
        trainer = self.arm(arm)
        if not isinstance(trainer, CohortArm):
            raise PrivacyError(f"method {self.config.method!r}: personal adapters never leave a device")
        return trainer.upload_personal()

    def arm(self, name: str) -> HeadArm | CohortArm:
        """The trainer of an arm, built on first use."""
        if name not in self._arms:
            arm = Arm.named(name)
            self._arms[name] = self._head_arm(arm) if self.config.shares_texts else self._cohort_arm(arm)
        return self._arms[name]

    def _head_arm(self, arm: Arm) -> HeadArm:
        return HeadArm(self.config, arm, self.cohort, self.out, self._features(), self._store)

    def _cohort_arm(self, arm: Arm) -> CohortArm:
        features = self._features() if self.config.train.objective == "reward" else None
        return CohortArm(self.config, arm, self.cohort, self.out, features)

    def _features(self) -> FeatureMap:
        """The reward head's public feature map, from the public texts under the base model."""
        if self._map is None:
            used = texts_of(self.cohort.everybodys_train_examples(), self.cohort.values)
            plain = FeatureMap.plain(self._store.trunk.hidden, self.config.train.pooling)
            self._map = plain.fitted(pooled_features(self._store, plain, used)) if len(used) else plain
        return self._map


def texts_of(*examples: Examples) -> npt.NDArray[np.int64]:
    """The distinct texts that some examples index, in order."""
    named = [column for part in examples for column in (part.chosen, part.rejected[part.rejected != NO_TEXT])]
    return np.unique(np.concatenate(named))
