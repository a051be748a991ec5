"""Which population a run uses, and that it is built once."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from fl_core.atomic import locked
from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError, DataError, RunError
from fl_core.populations import prepared_population, run_folder
from fl_core.records import Population, Records, Text, User


def tiny(config: RunConfig) -> Population:
    """A source for these tests; leaves one file a call beside the home."""
    (Path(os.environ["DUET_HOME"]).parent / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()
    rows = [(user, 0, 1, 1, 0, 0, 0) for user in range(max(1, config.users))]
    return Population(
        name="tiny",
        texts=(Text("a", "p", "x"), Text("b", "p", "y")),
        users=tuple(User(f"u{i}") for i in range(max(1, config.users))),
        records=Records.from_rows(rows),
        values=(),
    )


class _Point:
    name = "tiny"

    def load(self) -> object:
        return tiny


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [_Point()])


def _builds(tmp_path: Path) -> int:
    return len(list(tmp_path.glob("built-*")))


def test_a_source_is_built_once_and_again_for_other_settings(tmp_path: Path) -> None:
    config = RunConfig(population="tiny", users=3)
    folder = prepared_population(config)
    assert len(Population.load(folder).users) == 3
    assert prepared_population(config) == folder and _builds(tmp_path) == 1
    same = config.model_copy(update={"method": "fedit", "out": "elsewhere"})
    assert prepared_population(same) == folder, "what does not shape a population does not name it"
    for changed in ({"users": 4}, {"seed": 1}):
        assert prepared_population(config.model_copy(update=changed)) != folder
    assert _builds(tmp_path) == 3


def test_a_changed_input_file_is_not_served_from_the_old_population(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("1\n")
    config = RunConfig(population="tiny", path=str(source))
    first = prepared_population(config)
    source.write_text("1\n2\n")
    assert prepared_population(config) != first
    with pytest.raises(DataError, match="gone"):
        prepared_population(config.model_copy(update={"path": str(tmp_path / "gone")}))


def test_a_prepared_folder_is_used_as_it_is(tmp_path: Path) -> None:
    tiny(RunConfig()).save(tmp_path / "mine")
    assert prepared_population(RunConfig(population=str(tmp_path / "mine"))) == (tmp_path / "mine").resolve()


def test_wrong_names_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'tinny'.*did you mean 'tiny'.*known: tiny"):
        prepared_population(RunConfig(population="tinny"))
    with pytest.raises(DataError, match=r"no population\.json"):
        prepared_population(RunConfig(population=str(tmp_path / "empty")))


def test_an_interrupted_build_is_not_taken_for_a_population(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(population="tiny")
    with monkeypatch.context() as patch:
        patch.setattr(Population, "save", _broken_save)
        with pytest.raises(KeyboardInterrupt):
            prepared_population(config)
    assert len(Population.load(prepared_population(config)).users) == 100


def _broken_save(self: Population, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "population.json").write_text("{")
    raise KeyboardInterrupt


def test_several_processes_build_one_population(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=prepared_population, args=(RunConfig(population="tiny"),)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert _builds(tmp_path) == 1


def test_a_lock_is_not_waited_for_endlessly(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with (
        locked(path, 1.0),
        pytest.raises(RunError, match="locked"),
        locked(path, 0.2),
    ):
        pass


def test_run_folder(tmp_path: Path) -> None:
    assert run_folder(RunConfig(out=str(tmp_path)), 5) == tmp_path
    assert run_folder(RunConfig(), 5) == tmp_path / "home" / "runs" / "5"
