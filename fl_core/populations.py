"""Where Duet keeps its files, and which prepared population a run uses.

``prepared_population`` is what lets ``flwr run .`` work with nothing but defaults: a source
named in the configuration is looked up among the installed entry points of the group
``duet.populations`` (``world = "simulation.sources:world"``; a function from ``RunConfig`` to
``Population``), built once, and kept under ``DUET_HOME`` for every later run and process.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fl_core.atomic import locked
from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError, DataError
from fl_core.records import Population

GROUP = "duet.populations"
"""Entry point group of population sources."""

LOCK_SECONDS = 1800.0
"""How long one process waits for another that prepares the same population."""

Builder = Callable[[RunConfig], Population]


def duet_home() -> Path:
    """``$DUET_HOME``, or ``~/.duet``."""
    return Path(os.environ.get("DUET_HOME") or "~/.duet").expanduser()


def run_folder(config: RunConfig, run_id: int) -> Path:
    """Where a run's adapters and stores go: ``config.out``, or a folder of Duet's home."""
    return Path(config.out).expanduser() if config.out else duet_home() / "runs" / str(run_id)


def prepared_population(config: RunConfig, lock_seconds: float = LOCK_SECONDS) -> Path:
    """Folder of the population that ``config`` names, built first where it is not there yet.

    Safe to call from several processes at once.  Raises ``ConfigurationError`` for an unknown
    source, ``DataError`` for a folder that is none, ``RunError`` when another process holds
    the lock for longer than ``lock_seconds``.
    """
    folder = Path(config.population).expanduser()
    if (folder / "population.json").is_file():
        return folder.resolve()
    if folder.name != config.population:
        raise DataError(
            f"population={config.population!r}: no population.json in that folder; "
            "give an absolute path of a prepared population, or the name of a source"
        )
    builder = _builder(config.population)
    target = duet_home() / "populations" / f"{config.population}-{_fingerprint(config, builder)}"
    if not target.is_dir():
        with locked(target.with_name(f"{target.name}.lock"), lock_seconds):
            if not target.is_dir():
                _build(builder, config, target)
    return target


def _builder(name: str) -> Builder:
    sources = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in sources:
        close = difflib.get_close_matches(name, sources, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigurationError(
            f"population={name!r}: no such source; {hint}known: {', '.join(sorted(sources)) or 'none'}; "
            "or give the folder of a prepared population"
        )
    builder: Builder = sources[name].load()
    return builder


def _build(builder: Builder, config: RunConfig, target: Path) -> None:
    """Build into a folder beside ``target``, then rename: readers never see half of one."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    builder(config).save(partial)
    partial.rename(target)


def _fingerprint(config: RunConfig, builder: Builder) -> str:
    """16 hex digits of all that decides a population: settings, input files, the source's code."""
    facts: dict[str, Any] = {
        "source": config.population,
        "path": str(Path(config.path).expanduser().resolve()) if config.path else "",
        "users": config.users,
        "seed": config.seed,
        "files": [_stamp(path) for path in _files(Path(config.path).expanduser())] if config.path else [],
        "code": _code_hash(builder),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: Path) -> Iterable[Path]:
    return sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"path={str(path)!r}: cannot be read ({error.strerror})") from error
    return path.name, status.st_size, status.st_mtime_ns


def _code_hash(builder: Builder) -> str:
    """Hash of the Python files of the builder's package: changed code is not served old data."""
    package = getattr(builder, "__module__", "").partition(".")[0]
    try:
        spec = importlib.util.find_spec(package) if package else None
    except ValueError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    digest = hashlib.sha256()
    for path in sorted(file for folder in folders for file in Path(folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
