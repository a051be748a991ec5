"""Canaries in the very code that trains: what an adversary sees of them, with noise and without.

Several users, each with records of his own whose clipped gradients are orthogonal (or nearly so) and
known, each included by a fair coin.  They are trained by the parts that a device runs: ``HeadArm.train``
for the head paths, ``train_cohort`` on a ``CohortEngine`` for adapters in the trunk.  Where releases are
private for users, canary users send through the server's own sum (``strategies.aggregation.round_mean``).
All settings that the guarantee rests on (q, clip, sigma and how it was derived, steps, L) are the run's.

The adversary is the strongest that the guarantee speaks of.  *shared*: he is the server, sees each
user's every upload, and sends the same adapter in every round.  *personal*: he sees a user's stored
weights after every step.  *joint*: he sees both.  He knows all records but whether each canary is there.

Everything is done twice: once as it is, which gives the scores, and once with the noise source's normal
numbers all 0, which shows each canary's contribution to each step: it must be 0 or C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_client.cohort import Cohort
from fl_client.head_arm import HeadArm
from fl_core.adapters import DualAdapter, Site
from fl_core.audit import Floats, Mask
from fl_core.base_model import BaseModel
from fl_core.calibration import calibrate
from fl_core.cohort import StepPlan, train_cohort
from fl_core.config import AdapterSpec, RunConfig
from fl_core.engine import CohortEngine, CohortState, Examples
from fl_core.features import FeatureMap
from fl_core.frozen_features import FrozenFeatures
from fl_core.noise import NoiseSource, SimulationNoise
from fl_core.prefix_store import PrefixStore
from fl_core.privacy import DpEvent, gaussian_epsilon, participations
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User
from fl_core.shared import Arm, Arrays, arm_sigmas, from_arrays, planned_steps, to_arrays
from fl_core.trunk import Tokens, Trunk
from strategies.aggregation import round_mean
from strategies.user_level import server_noise

ARM, RELEASED_ARM = "dual_dp", "shared_dp"
BEYOND = 20.0
"""A head canary's gradient is this many times the clip, so that a clip that is missing shows."""
MOST_MARGIN = 0.1
"""Standard deviation of a canary's margin under the noise in a user's weights, at the most: gradients
stay where they were.  It fixes ``train.personal-lr``, on which the guarantee does not rest."""
COHORT_TARGETS = "o_proj,down_proj"
"""Layers of the cohort path where ``shared.targets`` names none (names of Llama-like models)."""
TEXT_TOKENS = (6, 20)
"""Shortest and longest canary of the cohort path, so that batches are ragged."""


class Silent(SimulationNoise):
    """The same samples, and normal numbers that are all 0: shows the sums before noise."""

    def normal(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float32]:
        """Zeros."""
        return np.zeros(shape, dtype=np.float32)


@dataclass(frozen=True)
class Observed:
    """What was seen of U users with n canaries each on one path, in units of the clip.

    ``event`` is what the path declares of a record; ``included`` [U, n]; ``scores`` [T, U, n] of each
    step; ``contributions`` [T, U, n] the same without noise; ``strength`` [U, n] the score of a
    canary that is in the batch (1 where canaries are orthogonal).
    """

    event: DpEvent
    included: Mask
    scores: Floats
    contributions: Floats
    strength: Floats

    def evidence(self) -> Floats:
        """[U, n] the log-likelihood ratio of inclusion, but for a constant and a small q."""
        total: Floats = self.scores.sum(0) * self.strength
        return total / max(self.event.noise_multiplier, 1e-9) ** 2


def with_epsilon(config: RunConfig, target: float) -> RunConfig:
    """``config`` with another target, from which sigma is derived anew."""
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"epsilon": target})})


def coins(seed: int, users: int, each: int) -> Mask:
    """[U, n] whether a canary is included, by a fair coin."""
    return np.random.default_rng([seed, 4]).random((users, each)) < 0.5


# The reward head's paths -----------------------------------------------------------------


def head_config(config: RunConfig, canaries: int, users: int) -> RunConfig:
    """``config`` with adapters that have room for ``canaries`` orthogonal records a user.

    The shared adapter is a head over that many features, the personal one a ``subspace`` of all.
    What the guarantee rests on stays; every personal step is one of a round, where it is seen.
    """
    head = AdapterSpec(kind="b_only", targets="")
    own = AdapterSpec(kind="subspace", rank=canaries, targets="")
    train = {"objective": "reward", "local_steps": 1, "personal_steps": 1, "final_steps": 0}
    changes = {
        "arms": ARM,
        "users": users,
        "method": "components",
        "shared": head,
        "personal": own,
        "train": config.train.model_copy(update=train),
        "privacy": config.privacy.model_copy(
            update={
                "trunk": False,
                "scope": "both",
                "user_noise": 0.0,  # a path of its own
                "head_width": max(canaries, config.privacy.head_width),
            }
        ),
    }
    made = config.model_copy(update=changes)
    sigma, privacy = arm_sigmas(made, Arm.named(ARM)).personal, made.privacy
    wander = sigma * privacy.clip * math.sqrt(made.federation.rounds) * BEYOND * 2 * privacy.clip
    rate = MOST_MARGIN * made.train.expected_batch / max(wander, 1e-9)
    return made.model_copy(update={"train": made.train.model_copy(update={"personal_lr": rate})})


def head_population(included: Mask) -> Population:
    """Users whose records prefer a canary text to the common other one."""
    users, each = included.shape
    texts = [Text(f"canary-{i}", "canary", f"canary {i}") for i in range(each)]
    rows = [
        (user, int(canary), each, 1, 0, 0, int(Split.TRAIN))
        for user in range(users)
        for canary in np.flatnonzero(included[user])
    ]
    return Population(
        name="canaries",
        texts=(*texts, Text("other", "canary", "other")),
        users=tuple(User(f"u{i}") for i in range(users)),
        records=Records.from_rows(rows),
        values=(),
    )


def head_features(canaries: int, clip: float, seed: int) -> tuple[FrozenFeatures, Tensor]:
    """(features of the canary texts and the other one, their directions [n, F], orthonormal; F = n).

    The gradient of a pair at margin 0 is half the difference of the features over sqrt(F).
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(canaries, canaries, generator=generator)).Q
    phi = torch.cat([directions, torch.zeros(1, canaries)]) * (2 * BEYOND * clip * math.sqrt(canaries))
    return FrozenFeatures(FeatureMap(canaries), phi, torch.full((canaries + 1,), math.nan)), directions


class HeadUsers:
    """``HeadArm`` of each user alone, as on his device, with canaries for records."""

    def __init__(self, config: RunConfig, included: Mask, out: Path, base: BaseModel) -> None:
        self.config, self.included, self.out, self.base = config, included, out, base
        self.population = head_population(included)
        self.frozen, self.directions = head_features(included.shape[1], config.privacy.clip, config.seed)
        tokens = Cohort(config, self.population, base, np.arange(len(included))).texts.tokens
        self.store = PrefixStore(Trunk(base, []), tokens)

    def observed(self) -> dict[str, Observed]:
        """Both paths: ``shared`` and ``personal``."""
        silent = Silent(self.config.seed)
        noised = self._steps("noised", None)
        plain = self._steps("plain", silent)
        sigmas = arm_sigmas(self.config, Arm.named(ARM))
        steps = planned_steps(self.config, Arm.named(ARM))
        q, clip = self.config.privacy.sampling_rate, self.config.privacy.clip
        ones = np.ones(self.included.shape)
        events = (
            DpEvent(q, sigmas.shared, steps[0], clip, "shared"),
            DpEvent(q, sigmas.personal, steps[1], clip, "personal"),
        )
        return {
            event.adapter: Observed(event, self.included, noised[path] / clip, plain[path] / clip, ones)
            for path, event in enumerate(events)
        }

    def _steps(self, name: str, noise: SimulationNoise | None) -> Floats:
        """[2, T, U, n] what is released in each canary's direction, shared and personal."""
        seen = [self._user(user, name, noise) for user in range(len(self.included))]
        return np.stack(seen, axis=2)

    def _user(self, user: int, name: str, noise: SimulationNoise | None) -> Floats:
        """[2, T, n] of one user."""
        cohort = Cohort(self.config, self.population, self.base, np.array([user]))
        folder = self.out / name / str(user)
        arm = HeadArm(self.config, Arm.named(ARM), cohort, folder, self.frozen, self.store)
        if noise is not None:
            arm.noise = noise
        start = to_arrays(arm.adapter.shared_layout, arm.adapter.initial_shared())
        rounds = range(1, self.config.federation.rounds + 1)
        both = [self._released(arm, start, server_round) for server_round in rounds]
        return np.stack([torch.stack(part).double().numpy() for part in zip(*both, strict=True)])

    def _released(self, arm: HeadArm, start: Arrays, server_round: int) -> tuple[Tensor, Tensor]:
        """([n], [n]) a round's upload and personal step, as gradient sums, in the canaries' directions.

        The personal step is read off the weights stored before and after it; the pull of the prior
        is known.
        """
        config, size = self.config, len(self.directions)
        reply, _ = arm.train(server_round, start)
        upload = from_arrays(arm.adapter.shared_layout, reply)
        head = arm.adapter.shared_layout.view(upload, "head.common") * config.train.expected_batch
        state = arm.load()
        before, after = (torch.from_numpy(np.array(rows[0, :size])) for rows in (state.before, state.after))
        step = (before - after) * (config.train.expected_batch / config.train.personal_lr)
        own = arm.rate * config.train.prior_precision * before - step
        return self.directions @ head, self.directions @ own


def joined(paths: dict[str, Observed]) -> Floats:
    """[U, n] evidence of an adversary who sees the shared and the personal path."""
    return paths["shared"].evidence() + paths["personal"].evidence()


# The release's path: canary users ----------------------------------------------------------


def release_noise(config: RunConfig, target: float) -> float:
    """z with which a user's participations in a run cost ``target`` at ``privacy.user_delta``."""
    privacy, low, high = config.privacy, 1e-3, 1e6
    while high > low * (1 + 1e-6):
        z = math.sqrt(low * high)
        cost = gaussian_epsilon(math.sqrt(release_rounds(config)) / z, privacy.user_delta)
        low, high = (z, high) if cost > target else (low, z)
    return high


def release_rounds(config: RunConfig) -> int:
    """How many rounds of a run one user takes part in at most."""
    return min(config.privacy.participations, config.federation.rounds)


def release_observed(config: RunConfig, z: float, included: Mask) -> Observed:
    """What the public sees of users whose uploads are known: the server's noised sums.

    U runs of n canary users each, who send far more than the clip in each of their rounds.  Unit:
    one user.  Scores and contributions as for records.
    """
    privacy = config.privacy.model_copy(update={"user_noise": z, "round_users": included.shape[1]})
    config, rounds = config.model_copy(update={"privacy": privacy}), release_rounds(config)
    event = participations(z, rounds, privacy.user_clip)
    scores, contributions = (_release_scores(config, rounds, included, silent) for silent in (False, True))
    return Observed(event, included, scores, contributions, np.ones(included.shape))


def _release_scores(config: RunConfig, rounds: int, included: Mask, silent: bool) -> Floats:
    """[T, U, n] the sum of each round in each canary user's direction, over the clip."""
    runs, each = included.shape
    privacy, scores = config.privacy, np.zeros((rounds, runs, each))
    for run in range(runs):
        source = server_noise(privacy, config.seed * runs + run)
        noise = Silent(config.seed) if silent else source
        generator = torch.Generator().manual_seed(run)
        directions = torch.linalg.qr(torch.randn(each, each, generator=generator)).Q.numpy()
        uploads = [
            ({"head.common": BEYOND * privacy.user_clip * directions[user]}, 1)
            for user in np.flatnonzero(included[run])
        ]
        for server_round in range(rounds):
            mean, _ = round_mean(config, RELEASED_ARM, uploads, noise, server_round + 1)
            total = mean["head.common"] * privacy.round_users
            scores[server_round, run] = directions @ total / privacy.user_clip
    return scores


# The cohort engine's path ----------------------------------------------------------------


@dataclass(frozen=True)
class CohortSetup:
    """An engine with canary texts, its start, and what a white-box adversary knows of their gradients.

    ``state`` of one user; ``directions`` [n, D]: unit vectors, each orthogonal to the clipped gradients
    of all canaries but its own; ``strength`` [n]: the inner product with that, over the clip.
    """

    engine: CohortEngine
    state: CohortState
    clip: float
    directions: Tensor
    strength: Floats


def cohort_setup(config: RunConfig, base: BaseModel, canaries: int, seed: int) -> CohortSetup:
    """The SFT objective on random texts, B of a top layer trained, on ``base``.

    The clip is half of the least canary's norm, so that all are clipped.
    """
    trunk, adapter = top_layer(config, base, seed)
    texts = canary_texts(canaries, len(base.tokenizer), seed)
    engine = CohortEngine(trunk, adapter, texts, config.train.model_copy(update={"objective": "sft"}))
    state = CohortState(adapter.initial_shared()[None], torch.zeros(1, 0), torch.ones(1, 2))
    gradient = torch.cat([_alone(engine, canary, state) for canary in range(canaries)])
    norms = gradient.norm(dim=1)
    unit = (gradient / norms[:, None]).double()
    dual = torch.linalg.solve(unit @ unit.T, unit)
    size = dual.norm(dim=1)
    clip = float(norms.min()) / 2
    return CohortSetup(engine, state, clip, (dual / size[:, None]).float(), (1 / size).numpy())


def top_layer(config: RunConfig, base: BaseModel, seed: int) -> tuple[Trunk, DualAdapter]:
    """A trunk and B of LoRA on its top layer: no reward head, no personal part."""
    targets = config.shared.targets or COHORT_TARGETS
    spec = AdapterSpec(kind="b_only", rank=4, alpha=8.0, targets=targets, layers="top:1")
    trunk = Trunk(base, [(spec.target_names, spec.layers)])
    shapes = {name: trunk.sites[name].weight.shape for name in trunk.names_of(spec.target_names, spec.layers)}
    sites = tuple(Site(name, shape[1], shape[0]) for name, shape in shapes.items())
    return trunk, DualAdapter(spec, None, sites, (), trunk.hidden, head=False, seed=seed)


def canary_texts(count: int, vocabulary: int, seed: int) -> tuple[Tokens, ...]:
    """Random ragged texts; all but the first token are the response."""
    generator = np.random.default_rng([seed, 5])
    lengths = generator.integers(TEXT_TOKENS[0], TEXT_TOKENS[1] + 1, count)
    rows = [generator.integers(2, vocabulary, length) for length in lengths]
    return tuple(Tokens(tuple(map(int, ids)), (False, *(True,) * (len(ids) - 1))) for ids in rows)


def _alone(engine: CohortEngine, canary: int, state: CohortState) -> Tensor:
    """[1, D] a canary's gradient in a batch of its own, where it can depend on no other."""
    return engine.example_gradients(
        _examples(np.zeros(1, dtype=np.int64), np.array([canary])), state, "shared"
    )


def _examples(user: npt.NDArray[np.int64], text: npt.NDArray[np.int64]) -> Examples:
    return Examples(user, text, np.full_like(text, NO_TEXT), np.ones_like(text))


def cohort_observed(config: RunConfig, setup: CohortSetup, included: Mask) -> Observed:
    """One cohort of U users on the engine, ``federation.rounds`` rounds of one step each."""
    sigma = calibrate(config.privacy, config.federation.rounds, 0).shared
    rate, steps = config.privacy.sampling_rate, config.federation.rounds
    plan = StepPlan(1, "sgd", 1.0, setup.clip, sigma, rate, config.train.expected_batch)
    event = DpEvent(rate, sigma, steps, setup.clip, "shared")
    noise = SimulationNoise(config.seed)
    scores = np.stack(list(_cohort_steps(setup, plan, included, steps, noise)))
    plain = np.stack(list(_cohort_steps(setup, plan, included, steps, Silent(config.seed))))
    strength = np.broadcast_to(setup.strength, included.shape)
    return Observed(event, included, scores, plain, strength)


def _cohort_steps(
    setup: CohortSetup, plan: StepPlan, included: Mask, steps: int, noise: NoiseSource
) -> Iterator[Floats]:
    """[U, n] of each step, all from the same start."""
    users = len(included)
    state = replace(
        setup.state,
        shared=setup.state.shared.expand(users, -1),
        personal=torch.zeros(users, 0),
        fusion=torch.ones(users, 2),
    )
    user, text = (part.astype(np.int64) for part in np.nonzero(included))
    examples, keys = _examples(user, text), list(range(users))
    for server_round in range(1, steps + 1):
        moved = train_cohort(setup.engine, state, examples, keys, "shared", plan, noise, server_round)
        sums = (state.shared - moved.shared) * (plan.denominator / plan.lr)
        yield (sums @ setup.directions.T).double().numpy() / setup.clip


def norm_error(setup: CohortSetup, batch: int = 16) -> float:
    """The largest relative difference between a canary's gradient in a batch and alone.

    A loss that is averaged over a batch's tokens makes one record's gradient depend on others.
    """
    worst = 0.0
    for first in range(0, len(setup.engine.texts), batch):
        text = np.arange(first, min(first + batch, len(setup.engine.texts)))
        together = setup.engine.example_gradients(_examples(np.zeros_like(text), text), setup.state, "shared")
        for row, canary in enumerate(text):
            alone = _alone(setup.engine, int(canary), setup.state)[0]
            worst = max(worst, float((together[row] - alone).norm() / alone.norm()))
    return worst
