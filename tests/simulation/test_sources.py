"""Each source builds its population from the run's settings and the scenario's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError, DataError
from simulation import sources


def test_world_follows_users_seed_and_knobs() -> None:
    config = RunConfig(users=15, seed=3)
    population = sources.build_population(config, {"world": {"groups": 2}})
    assert len(population.users) == 15
    assert len({user.group for user in population.users}) <= 2
    again = sources.build_population(config, {"world": {"groups": 2}})
    other = sources.build_population(RunConfig(users=15, seed=4), {"world": {"groups": 2}})
    assert population.records.chosen.tolist() == again.records.chosen.tolist()
    assert population.records.chosen.tolist() != other.records.chosen.tolist()


def test_world_reads_its_knobs_from_a_scenario_at_path(tmp_path: Path) -> None:
    """What `flwr run . --run-config 'path="scenario.toml"'` uses."""
    (tmp_path / "scenario.toml").write_text("[world]\ngroups = 1\n")
    population = sources.world(RunConfig(users=10, path=str(tmp_path / "scenario.toml")))
    assert len({user.group for user in population.users}) == 1


def test_pairs_and_their_splits(tmp_path: Path) -> None:
    lines = [
        {"user_id": f"u{u}", "prompt": f"p{n}", "chosen": f"a{n}", "rejected": f"b{n}"}
        for u in range(4)
        for n in range(12)
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig(population="pairs", path=str(path), users=0)
    population = sources.build_population(config, {"splits": {"test": 0.5}})
    usual = sources.build_population(config, {})
    assert len(population.users) == 4
    assert population.values
    assert (population.records.split == 3).sum() > (usual.records.split == 3).sum()


def test_prepared_folder(tmp_path: Path) -> None:
    population = sources.build_population(RunConfig(users=5), {})
    population.save(tmp_path / "mine")
    again = sources.build_population(RunConfig(population=str(tmp_path / "mine")), {})
    assert again.texts == population.texts


@pytest.mark.parametrize(
    ("config", "tables", "message"),
    [
        ({"population": "wurld"}, {}, r"source='wurld': .*sources: world, candidates, polis, pairs"),
        ({"users": 0}, {}, r"users=0: simulated people have no 'all'"),
        ({}, {"world": {"seed": 3}}, r"world\.seed=3: belongs to the whole run"),
        ({}, {"world": {"gruops": 3}}, "gruops: unknown setting"),
        ({"population": "polis"}, {}, r"path='': the source 'polis' reads a file or folder"),
        ({"population": "pairs", "path": "x"}, {"splits": {"test": 2}}, "no such file"),
    ],
)
def test_mistakes_are_named(config: dict, tables: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises((ConfigurationError, DataError), match=message):
        sources.build_population(RunConfig(**config), tables)
