"""The server's count of devices' participations: kept over runs and crashes, within a window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fl_core.config import PrivacyConfig
from fl_core.errors import RunError
from fl_core.participations import DAY_SECONDS, Participations

NODE, OTHER = 2**63 + 11, 7


class _Clock:
    def __init__(self) -> None:
        self.days = 0.0

    def __call__(self) -> float:
        return 1e9 + self.days * DAY_SECONDS


def _count(path: Path, run: str = "a", clock: _Clock | None = None) -> Participations:
    privacy = PrivacyConfig(participations=3, lifetime_participations=5, window_days=90)
    return Participations(path, privacy, run, clock or _Clock())


def test_a_device_that_has_sent_as_often_as_declared_is_asked_no_more(tmp_path: Path) -> None:
    count = _count(tmp_path / "p.sqlite")
    for server_round in (1, 2):
        count.record([NODE, OTHER], "dual_dp", server_round)
    assert count.exhausted() == frozenset()
    count.record([NODE], "dual_dp", 3)
    assert count.exhausted() == {NODE}


def test_another_run_and_another_arm_count_too_and_a_repeated_round_does_not(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    for _ in range(5):
        _count(path).record([NODE], "dual_dp", 1)
    _count(path, run="b").record([NODE], "dual_dp", 1)
    assert _count(path).exhausted() == frozenset()
    _count(path, run="b").record([NODE], "shared_dp", 1)
    assert _count(path).exhausted() == {NODE}


def test_a_round_that_is_tried_again_is_not_refused_by_its_own_count(tmp_path: Path) -> None:
    count = _count(tmp_path / "p.sqlite")
    for server_round in (1, 2, 3):
        count.record([NODE], "dual_dp", server_round)
    assert count.exhausted("dual_dp", 3) == frozenset()
    assert count.exhausted("dual_dp", 4) == count.exhausted("shared_dp", 3) == {NODE}
    assert _count(tmp_path / "p.sqlite", run="b").exhausted("dual_dp", 3) == {NODE}


def test_a_window_passes_and_a_lifetime_does_not(tmp_path: Path) -> None:
    clock = _Clock()
    count = _count(tmp_path / "p.sqlite", clock=clock)
    for server_round in (1, 2, 3):
        count.record([NODE], "dual_dp", server_round)
    clock.days = 89.0
    assert count.exhausted() == {NODE}
    clock.days = 91.0
    assert count.exhausted() == frozenset()
    for server_round in (4, 5):
        count.record([NODE], "dual_dp", server_round)
    clock.days = 10_000.0
    assert count.exhausted() == {NODE}


def test_what_was_recorded_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    code = (
        "import os, signal; from pathlib import Path; from fl_core.config import PrivacyConfig; "
        "from fl_core.participations import Participations; "
        f"count = Participations(Path({str(path)!r}), PrivacyConfig(), 'a'); "
        "[count.record([5], 'dual_dp', r) for r in range(6)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert Participations(path, PrivacyConfig(), "a").exhausted() == {5}


def test_a_damaged_file_is_an_error_and_not_an_empty_count(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match="restore"):
        _count(path).exhausted()
