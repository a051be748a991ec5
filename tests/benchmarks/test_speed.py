"""The benchmark of speed measures equal work, and refuses to time what does not agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import speed
from benchmarks.cli import app
from fl_core.errors import DuetError

SMALL = speed.Workload("small", "embedded", 8, 2, 1, 3, 1)


@pytest.mark.parametrize(("layers", "texts"), [(1, 0), (1, 5), (0, 0)])
def test_every_contender_is_timed_and_agrees(layers: int, texts: int) -> None:
    row = speed.measure(replace(SMALL, layers=layers, texts=texts), 2)
    names = set(row["milliseconds_a_user"])
    assert {"engine", "engine without DP", "client set up each time", "the same without DP"} <= names
    assert ("engine, first round" in names) == (texts == 0)
    assert all(0 < low <= middle <= high for middle, low, high in row["milliseconds_a_user"].values())
    assert row["agreement"] < 1e-6
    wanted = row["milliseconds_a_user"]["client set up each time"][0]
    assert row["times_faster_than_set_up"] == wanted / row["milliseconds_a_user"]["engine"][0]


def test_contenders_that_disagree_are_not_timed() -> None:
    jobs = speed.Jobs(SMALL)
    baseline = speed.Baseline(jobs)
    assert speed.check_agreement(jobs, baseline) < 1e-6
    jobs.label[0] *= -1
    turned = speed.Baseline(speed.Jobs(SMALL))
    with pytest.raises(DuetError, match="differ"):
        speed.check_agreement(jobs, turned)


def test_the_engine_of_shared_texts_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = speed.Jobs(replace(SMALL, texts=5))
    assert speed.check_agreement(jobs, speed.Baseline(jobs)) < 1e-6
    right = speed.Jobs.shared_sum
    monkeypatch.setattr(speed.Jobs, "shared_sum", lambda *args, **named: 1.01 * right(*args, **named))
    with pytest.raises(DuetError, match="differ"):
        speed.check_agreement(jobs, speed.Baseline(jobs))


def test_work_left_counts_the_layers_above_the_prefix() -> None:
    """Four operations a number and token: q, k, v, o of 256 x 256 and three of 256 x 688, one layer."""
    numbers = 4 * 256 * 256 + 3 * 256 * 688
    assert speed.work_left(speed.Jobs(SMALL)) == 4 * numbers * 8 * 2
    assert speed.work_left(speed.Jobs(replace(SMALL, layers=2))) == 2 * 4 * numbers * 8 * 2


def test_the_command_writes_figures_and_names_unknown_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "WORKLOADS", (SMALL,))
    out = tmp_path / "speed.json"
    done = CliRunner().invoke(app, ["speed", "--out", str(out), "--repetitions", "1"])
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert {row["workload"] for row in rows} == {"small"}
    assert "small" in done.output and str(out.name) in done.output.replace("\n", "")
    wrong = CliRunner().invoke(app, ["speed", "--only", "nothing"])
    assert wrong.exit_code == 2 and "small" in wrong.output
