"""Each fault put into the training code is caught by the audit, and the code as it is never is.

The figures of docs/privacy.md come from the tests marked ``figures``, which run hundreds of audits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scipy.stats import binom

from fl_core.base_model import BaseModel, load_base
from fl_core.config import RunConfig
from simulation.audit import PathAudit, audit_cohort, audit_head
from tests.simulation.sabotage import EXPECTED_BY, GROSS, OTHERS, SUBTLE, Fault, token_mean

FAULTS = GROSS | SUBTLE | OTHERS
REPETITIONS = int(os.environ.get("DUET_AUDITS", "200"))


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> BaseModel:
    return load_base(str(tiny_model_folder), "float32")


def config_of(seed: int, epsilon: float, rate: float = 0.2, rounds: int = 6) -> RunConfig:
    return RunConfig.from_flat(
        {
            "seed": seed,
            "privacy.epsilon": epsilon,
            "privacy.sampling-rate": rate,
            "federation.rounds": rounds,
        }
    )


def head(
    base: BaseModel, seed: int, epsilon: float, canaries: int = 512, rate: float = 0.2, rounds: int = 6
) -> list[PathAudit]:
    return list(audit_head(config_of(seed, epsilon, rate, rounds), base, canaries))


@pytest.mark.parametrize("name", FAULTS)
def test_head_paths_catch(name: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[name](monkeypatch)
    shared, personal, _ = head(base, 7, 8.0)
    for path in (shared, personal):
        assert EXPECTED_BY[name] in path.caught(), path.name


@pytest.mark.parametrize("name", FAULTS)
def test_cohort_engine_catches(name: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few canaries the mean says less of a doubled clip than the exact contributions do."""
    expected = EXPECTED_BY | {"doubled clip": "contribution is not 0 or C"}
    FAULTS[name](monkeypatch)
    assert expected[name] in audit_cohort(config_of(7, 8.0), base, 128).caught()


def test_cohort_engine_catches_a_token_mean(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``labels=`` of Hugging Face models: norms depend on the batch."""
    token_mean(monkeypatch)
    path = audit_cohort(config_of(7, 8.0), base, 128)
    assert path.errors["gradient depends on the batch"] > 0.1
    assert not path.gate


def test_code_as_it_is_passes(base: BaseModel) -> None:
    cohort = audit_cohort(config_of(7, 8.0), base, 128)
    for path in (*head(base, 7, 8.0), *head(base, 7, 1.0, rate=1.0), cohort):
        assert path.gate, path.caught()
        assert path.within_claim


@pytest.mark.parametrize("name", ["no noise", "noise over batch", "the batch's mean clipped"])
def test_gross_faults_exceed_a_claim_of_one(
    name: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one-run bound alone, which believes nothing of the mechanism."""
    GROSS[name](monkeypatch)
    assert not any(path.within_claim for path in head(base, 3, 1.0, 1024, rate=1.0))


# Figures ---------------------------------------------------------------------------------


ROUNDS = 10


def seeds(count: int) -> Iterator[int]:
    return iter(range(1000, 1000 + count))


@pytest.mark.figures
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_figures_correct_code(epsilon: float, base: BaseModel) -> None:
    """No false alarm and no bound above its claim in 200 audits."""
    alarms, above, highest = Counter[str](), 0, 0.0
    for seed in seeds(REPETITIONS):
        for path in head(base, seed, epsilon, 1024, rounds=ROUNDS):
            alarms.update(f"{path.name}: {test}" for test in path.caught())
            above += not path.within_claim
            highest = max(highest, path.bound.epsilon / path.claimed)
    seen = f"{above} bounds above, highest {highest:.3f} of the claim, alarms {dict(alarms)}"
    print(f"\nepsilon {epsilon:g}: {REPETITIONS} audits, {seen}")
    assert above == 0
    assert not alarms


@pytest.mark.figures
def test_figures_correct_cohort_engine(base: BaseModel) -> None:
    alarms, above = Counter[str](), 0
    for seed in seeds(REPETITIONS):
        path = audit_cohort(config_of(seed, 1.0, rounds=ROUNDS), base, 256)
        alarms.update(path.caught())
        above += not path.within_claim
    print(f"\ncohort engine: {REPETITIONS} audits, {above} bounds above, alarms {dict(alarms)}")
    assert above == 0
    assert not alarms


def counted(
    fault: Fault, base: BaseModel, epsilon: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """How often each path caught a fault, by the bound, by the z of moments, and by exact checks."""
    fault(monkeypatch)
    found = Counter[str]()
    for seed in seeds(count):
        paths = head(base, seed, epsilon, 1024, rounds=ROUNDS)
        for path in (*paths, audit_cohort(config_of(seed, epsilon, rounds=ROUNDS), base, 256)):
            moments = [name for name in path.caught() if name in path.z]
            found[f"{path.name} bound"] += not path.within_claim
            found[f"{path.name} moments"] += bool(moments)
            found[f"{path.name} gate"] += not path.gate
        found["any bound"] += not all(path.within_claim for path in paths)
    return found


@pytest.mark.figures
@pytest.mark.parametrize("name", GROSS)
def test_figures_gross(name: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(GROSS[name], base, 1.0, 10, monkeypatch)
    print(f"\n{name} at epsilon 1: {dict(found)}")
    assert found["any bound"] == 10
    assert min(found[f"{path} gate"] for path in ("shared", "personal", "cohort engine")) == 10


@pytest.mark.figures
@pytest.mark.parametrize("name", SUBTLE | OTHERS)
def test_figures_subtle(name: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted((SUBTLE | OTHERS)[name], base, 8.0, 20, monkeypatch)
    print(f"\n{name} at epsilon 8: {dict(found)}")
    assert min(found[f"{path} gate"] for path in ("shared", "personal", "cohort engine")) >= 19


def test_counting_is_not_vacuous() -> None:
    """Correct code exceeding a bound 5% of the time would be seen in 200 audits."""
    assert binom.pmf(0, 200, 0.05) < 1e-4
