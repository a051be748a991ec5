"""Time and memory of a run by part, from what its processes wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fl_core import profiles
from fl_core.errors import DataError
from fl_core.profiles import Profile, read_profiles, save_profile
from simulation.profiling import MEASURING, PROFILE_FILE, summarise, write_profile


def test_a_process_writes_its_own_and_the_last_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in (1.0, 3.0):
        monkeypatch.setattr(profiles, "SPENT", {"noise": seconds})
        save_profile(tmp_path, "node-7")
    (found,) = read_profiles(tmp_path)
    assert found.process == "node-7" and found.seconds == {"noise": 3.0} and found.busy == 3.0
    assert 20 < found.peak_mb < 100_000  # MiB, whatever unit the system counts in


def test_a_damaged_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "node-1.json").write_text("{")
    with pytest.raises(DataError, match=r"node-1\.json"):
        read_profiles(tmp_path)


def test_nodes_add_up_and_flower_has_what_the_busiest_leaves() -> None:
    found = summarise(
        [
            Profile("node-1", {"forward": 5.0, "noise": 1.0}, 400.0),
            Profile("node-2", {"forward": 2.0}, 900.0),
            Profile(MEASURING, {"forward": 8.0}, 300.0),
        ],
        training=10.0,
        total=30.0,
    )
    assert found["nodes"] == {"forward": 7.0, "noise": 1.0}
    assert found["measuring"] == {"forward": 8.0}
    assert found["flower_and_waiting"] == 4.0
    assert found["peak_mb"] == {"largest node process": 900.0, "measuring": 300.0}
    assert found["node_processes"] == 2


def test_the_table_and_the_file_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "SPENT", {"private weights": 2.25})
    save_profile(tmp_path, "node-1")
    monkeypatch.setattr(profiles, "SPENT", {"other": 1.5})
    save_profile(tmp_path, MEASURING)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(write_profile(tmp_path, {"training": 4.0, "evaluate": 2.0}))
    told = json.loads((tmp_path / PROFILE_FILE).read_text())
    assert told["nodes"] == {"private weights": 2.25} and told["flower_and_waiting"] == 1.75
    assert told["total_seconds"] == 6.0
    text = console.export_text()
    for word in ("private weights", "2.2", "Flower", "1.8", "peak memory"):
        assert word in text
