"""``duet audit``: does the code that trains keep the privacy that it claims?

Canaries go through the training code itself (``simulation.canaries``), and three things are asked:

1. The *one-run lower bound* on epsilon must not exceed the claim.  Run at a claim of at most 1: at
   larger ones even a mechanism without noise may stay below (there are too few canaries).
2. The *moment gate*, at that claim and at the configured one: the variance of the noise, the mean
   of what an included canary adds, the batch sizes' mean and variance, and whether two users' noise is
   alike, all as |z| <= 4.5 (``fl_core.audit``).
3. Without noise, each canary's contribution to each step must be exactly 0 or C.

An audit can refute a claim and cannot prove one: it sees what these canaries see.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_core.atomic import write_bytes
from fl_core.audit import (
    GATE,
    SIGNIFICANCE,
    Bound,
    Floats,
    Mask,
    batch_size_z,
    mean_z,
    one_run_bound,
    same_noise_z,
    variance_z,
)
from fl_core.base_model import BaseModel, load_base
from fl_core.config import RunConfig
from fl_core.errors import PrivacyError
from fl_core.privacy import RELATIONS, DpEvent, Unit, epsilon
from simulation.attacks import Attacks, attacks
from simulation.canaries import (
    HeadUsers,
    Observed,
    cohort_observed,
    cohort_setup,
    coins,
    head_config,
    joined,
    norm_error,
    release_noise,
    release_observed,
    with_epsilon,
)

AUDIT_FILE, PICTURE_FILE = "audit.json", "audit.png"
USERS = 4
"""Users with canaries; several, so that their noise can be compared."""
FEWEST_CANARIES, MOST_COHORT_CANARIES = 64, 256
COHORT_STEPS = 10
"""Steps through the cohort engine at most, each with passes of its own; sigma is derived for them."""
BOUND_CLAIM = 1.0
"""The claim that the lower bound is held against, at most."""
RUNS = 2
"""Targets audited with one seed, each with random numbers of its own."""
MOST_ERROR = 1e-3
"""How far a contribution may be from 0 or C, over C, and gradients in a batch from those alone: rounding."""

Watch = Callable[[str], None]


@dataclass(frozen=True)
class PathAudit:
    """What was found on one path: the claim, the bound, and each test's z.

    ``errors`` are relative errors of what must be exact.  ``observed`` is ``None`` for ``joint``,
    which looks at two paths together; ``evidence`` and ``included`` are what the bound was made from.
    """

    name: str
    claimed: float
    bound: Bound
    evidence: Floats
    included: Mask
    z: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    observed: Observed | None = None
    delta: float = 0.0

    @property
    def unit(self) -> Unit:
        """Whom the claim is about."""
        return self.observed.event.unit if self.observed else "record"

    @property
    def within_claim(self) -> bool:
        """Whether the lower bound stays below the claim."""
        return self.bound.epsilon <= self.claimed

    @property
    def gate(self) -> bool:
        """Whether no moment is out of its range and all that must be exact is."""
        return not self.caught()

    def caught(self) -> tuple[str, ...]:
        """The tests that failed."""
        beyond = [name for name, value in self.z.items() if not abs(value) <= GATE]
        return (*beyond, *(name for name, value in self.errors.items() if not value <= MOST_ERROR))

    def to_json(self) -> dict[str, Any]:
        """For ``audit.json``."""
        event = self.observed.event if self.observed else None
        return {
            "epsilon_lower_bound": self.bound.epsilon,
            "epsilon_claimed": self.claimed,
            "guesses": self.bound.guesses,
            "correct": self.bound.correct,
            "canaries": int(self.included.size),
            "moment_gate": "pass" if self.gate else "fail",
            "failed_tests": list(self.caught()),
            "z": _finite(self.z),
            "errors": _finite(self.errors),
            "verdict": "pass" if self.gate and self.within_claim else "fail",
        } | ({} if event is None else _event_json(event))


@dataclass(frozen=True)
class Audit:
    """All paths, by their name and the epsilon that the run was configured for."""

    paths: Mapping[str, PathAudit]
    delta: float
    seed: int
    attacks: Attacks | None = None

    @property
    def passed(self) -> bool:
        """Whether no path exceeds its claim and no gate failed."""
        return all(path.gate and path.within_claim for path in self.paths.values())

    def worst(self) -> PathAudit:
        """The path whose bound is nearest to its claim, or furthest above it.

        Where no bound exceeds its claim, of those with a claim of at most 1: others say little.
        """
        refuted = [path for path in self.paths.values() if not path.within_claim]
        telling = [path for path in self.paths.values() if path.claimed <= BOUND_CLAIM]
        chosen = refuted or telling or list(self.paths.values())
        return max(chosen, key=lambda path: path.bound.epsilon / path.claimed)

    def to_json(self) -> dict[str, Any]:
        """The worst path's bound and claim at the top, all paths below."""
        worst = self.worst()
        return {
            "epsilon_lower_bound": worst.bound.epsilon,
            "epsilon_claimed": worst.claimed,
            "moment_gate": "pass" if all(path.gate for path in self.paths.values()) else "fail",
            "verdict": "pass" if self.passed else "fail",
            "unit": worst.unit,
            "relation": RELATIONS[worst.unit],
            "delta": worst.delta or self.delta,
            "significance": SIGNIFICANCE,
            "seed": self.seed,
            "paths": {name: path.to_json() for name, path in self.paths.items()},
        } | ({} if self.attacks is None else {"attacks": self.attacks.to_json()})

    def write(self, out: Path) -> None:
        """``audit.json`` and the picture, into the folder ``out``."""
        from simulation.audit_figures import audit_picture

        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / AUDIT_FILE, (json.dumps(self.to_json(), indent=2) + "\n").encode())
        write_bytes(out / PICTURE_FILE, audit_picture(self))


def audit(
    config: RunConfig,
    claim: float,
    canaries: int,
    watch: Watch = lambda _: None,
    with_attacks: bool = False,
) -> Audit:
    """All paths, at ``claim`` (at most 1) and at ``config.privacy.epsilon``, with ``canaries`` each.

    ``with_attacks``: those of ``simulation.attacks`` too; what they reach is shown and decides nothing.

    Raises ``PrivacyError`` where the claim is out of range, there are too few canaries, or the
    configuration has no differential privacy.
    """
    _check(config, claim, canaries)
    base = load_base(config.model, config.dtype)
    found: dict[str, PathAudit] = {}
    for run, target in enumerate(sorted({claim, config.privacy.epsilon})):
        at = with_epsilon(config, target).model_copy(update={"seed": RUNS * config.seed + run})
        watch(f"canaries through the head's paths at epsilon {target:g}")
        for path in audit_head(at, base, canaries):
            found[f"{path.name}, epsilon {target:g}"] = path
        watch(f"canaries through the cohort engine at epsilon {target:g}")
        found[f"cohort engine, epsilon {target:g}"] = audit_cohort(at, base, canaries)
    if config.privacy.user_noise:
        watch("canary users through the server's sum")
        for z in (release_noise(config, claim), config.privacy.user_noise):
            path = audit_release(config, z, canaries)
            found[f"release to the public, epsilon {path.claimed:.3g}"] = path
    attacked = attacks(config, base, claim, watch) if with_attacks else None
    return Audit(found, config.privacy.delta, config.seed, attacked)


def audit_head(config: RunConfig, base: BaseModel, canaries: int, users: int = USERS) -> Iterator[PathAudit]:
    """The paths ``shared``, ``personal`` and ``joint`` of ``HeadArm``, in this order."""
    each = max(1, canaries // users)
    made = head_config(config, each, users)
    included = coins(config.seed, users, each)
    with tempfile.TemporaryDirectory(prefix="duet-audit-") as folder:
        paths = HeadUsers(made, included, Path(folder), base).observed()
    for name, observed in paths.items():
        yield path_audit(name, observed, config.privacy.delta)
    evidence = joined(paths)
    claimed = epsilon([observed.event for observed in paths.values()], config.privacy.delta)
    yield PathAudit(
        "joint", claimed, one_run_bound(evidence, included, config.privacy.delta), evidence, included
    )


def audit_cohort(config: RunConfig, base: BaseModel, canaries: int, users: int = USERS) -> PathAudit:
    """The path of adapters in the trunk: ``train_cohort`` on a ``CohortEngine``."""
    each = max(1, min(canaries, MOST_COHORT_CANARIES) // users)
    rounds = min(config.federation.rounds, COHORT_STEPS)
    federation = config.federation.model_copy(update={"rounds": rounds})
    config = config.model_copy(update={"federation": federation})
    setup = cohort_setup(config, base, each, config.seed)
    observed = cohort_observed(config, setup, coins(config.seed + 1, users, each))
    alone = {"gradient depends on the batch": norm_error(setup)}
    return path_audit("cohort engine", observed, config.privacy.delta, alone)


def audit_release(config: RunConfig, z: float, canaries: int, runs: int = USERS) -> PathAudit:
    """The path ``release``: users, and what the server's noised sums tell everybody of them."""
    included = coins(config.seed + 2, runs, max(1, canaries // runs))
    return path_audit("release", release_observed(config, z, included), config.privacy.user_delta)


def path_audit(
    name: str, observed: Observed, delta: float, errors: Mapping[str, float] | None = None
) -> PathAudit:
    """The bound and all tests of what was seen on one path."""
    evidence = observed.evidence()
    return PathAudit(
        name,
        epsilon([observed.event], delta),
        one_run_bound(evidence, observed.included, delta),
        evidence,
        observed.included,
        moments(observed),
        {"contribution is not 0 or C": contribution_error(observed), **(errors or {})},
        observed,
        delta,
    )


def moments(observed: Observed) -> dict[str, float]:
    """The z of every moment; see the module's docstring."""
    event, included = observed.event, observed.included
    sigma, q, steps = event.noise_multiplier, event.sampling_rate, event.steps
    total, strength = observed.scores.sum(0), observed.strength
    spread = np.sqrt(steps * (sigma**2 + q * (1 - q) * strength[included] ** 2))
    batch_mean, batch_variance = _batch_sizes(observed)
    return {
        "noise variance": variance_z(total[~included], steps * sigma**2),
        "noise variance, each step": variance_z(observed.scores[:, ~included], sigma**2),
        "mean of included": mean_z(total[included], q * steps * strength[included], spread),
        "batch size": batch_mean,
        "batch size variance": batch_variance,
        "users' noise alike": same_noise_z(total, ~included),
    }


def contribution_error(observed: Observed) -> float:
    """The largest distance of a contribution from 0 or C, over C; left-out canaries' from 0."""
    found = observed.contributions / observed.strength
    nearest = np.clip(np.round(found), 0, observed.included[None])
    return float(np.abs(found - nearest).max())


def _batch_sizes(observed: Observed) -> tuple[float, float]:
    """The batch sizes' z; at a contribution above half of C a canary counts as taken."""
    taken = (observed.contributions / observed.strength > 0.5).sum(2).astype(np.float64)
    records = np.broadcast_to(observed.included.sum(1), taken.shape).astype(np.float64)
    return batch_size_z(taken, records, observed.event.sampling_rate)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """``values`` with null for what JSON has no number for: such a test has failed."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _event_json(event: DpEvent) -> dict[str, Any]:
    return {
        "unit": event.unit,
        "sampling_rate": event.sampling_rate,
        "noise_multiplier": event.noise_multiplier,
        "steps": event.steps,
        "clip": event.clip,
    }


def _check(config: RunConfig, claim: float, canaries: int) -> None:
    if not 0 < claim <= BOUND_CLAIM:
        raise PrivacyError(
            f"epsilon={claim!r}: the lower bound is for claims above 0 and up to {BOUND_CLAIM:g}; "
            "the configured privacy.epsilon is audited by the moment gate besides"
        )
    if canaries < FEWEST_CANARIES:
        raise PrivacyError(f"canaries={canaries}: too few to see anything; use {FEWEST_CANARIES} or more")
    if config.privacy.epsilon == 0:
        raise PrivacyError("privacy.epsilon=0: there is no privacy to audit; set a target above 0")
