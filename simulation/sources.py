"""Where populations come from: one function a source, registered as ``duet.populations``.

Each takes the run's configuration, of which ``path``, ``users`` and ``seed`` matter here.  What
only a source understands stands in a scenario file's tables: ``[world]`` (the knobs of simulated
users, for ``world`` and ``candidates``) and ``[splits]`` (how much is held out, for ``polis`` and
``pairs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_core.config import RunConfig, validated
from fl_core.errors import ConfigurationError, DataError
from fl_core.records import Population
from simulation.candidates import CandidatesConfig, build_candidates
from simulation.grammar import values_pairs
from simulation.pairs import build_pairs
from simulation.polis import build_polis
from simulation.splits import SplitShares
from simulation.world import WorldConfig, build_world

Tables = Mapping[str, Mapping[str, Any]]
"""A scenario's tables for sources: ``world`` and ``splits``, each may be absent."""

RUN_KEYS = ("users", "seed")
"""Settings of the run that a scenario's ``[world]`` may not repeat."""


def world(config: RunConfig, tables: Tables | None = None) -> Population:
    """Simulated users choosing among texts of a grammar; ``path`` may name a scenario file."""
    given = tables if tables is not None else _tables_of(config.path)
    return build_world(validated(WorldConfig, _people(config, given)))


def candidates(config: RunConfig, tables: Tables | None = None) -> Population:
    """Simulated users choosing among the answers of real models in the JSON lines at ``path``."""
    return build_candidates(_input(config), validated(CandidatesConfig, _people(config, tables or {})))


def polis(config: RunConfig, tables: Tables | None = None) -> Population:
    """Real people's votes on statements; ``path`` is the folder of one Polis conversation."""
    return build_polis(_input(config), config.users, config.seed, _shares(tables), values_pairs(config.seed))


def pairs(config: RunConfig, tables: Tables | None = None) -> Population:
    """Anybody's pairwise choices from the JSON lines at ``path``."""
    return build_pairs(_input(config), config.users, config.seed, _shares(tables), values_pairs(config.seed))


SOURCES: Mapping[str, Callable[[RunConfig, Tables | None], Population]] = {
    "world": world,
    "candidates": candidates,
    "polis": polis,
    "pairs": pairs,
}


def build_population(config: RunConfig, tables: Tables) -> Population:
    """The population of the source that ``config.population`` names, or of a prepared folder.

    Raises ``ConfigurationError`` for an unknown source and ``DataError`` for unusable input.
    """
    if config.population in SOURCES:
        return SOURCES[config.population](config, tables)
    folder = Path(config.population).expanduser()
    if not (folder / "population.json").is_file():
        raise ConfigurationError(
            f"source={config.population!r}: neither a source nor the folder of a prepared population; "
            f"sources: {', '.join(SOURCES)}"
        )
    return Population.load(folder)


def _people(config: RunConfig, tables: Tables) -> dict[str, Any]:
    """The settings of simulated users: the scenario's, with the run's users and seed."""
    given = dict(tables.get("world", {}))
    if repeated := [key for key in RUN_KEYS if key in given]:
        raise ConfigurationError(
            f"world.{repeated[0]}={given[repeated[0]]!r}: belongs to the whole run; "
            f"set {repeated[0]!r} outside of the table [world]"
        )
    if config.users == 0:
        raise ConfigurationError("users=0: simulated people have no 'all'; give a number, such as 500")
    return {**given, "users": config.users, "seed": config.seed}


def _shares(tables: Tables | None) -> SplitShares:
    return validated(SplitShares, (tables or {}).get("splits", {}))


def _input(config: RunConfig) -> Path:
    if not config.path:
        raise ConfigurationError(f"path='': the source {config.population!r} reads a file or folder; name it")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError(f"path={config.path!r}: no such file or folder")
    return path


def _tables_of(path: str) -> Tables:
    if not path:
        return {}
    from simulation.scenario import read_scenario  # scenario files may name any source

    return read_scenario(Path(path).expanduser()).tables
