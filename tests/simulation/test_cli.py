"""The command line: what it makes of its options, its exit codes, its errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_core.errors import DataError
from fl_core.records import Population
from fl_server.progress import Progress
from simulation import cli, launch, run, terminal
from simulation.launch import Resources
from simulation.report import ReportFiles, write_report
from simulation.scenario import Scenario
from tests.simulation.report_sample import sample

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[2]


def duet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulation.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `duet simulate` would have run."""
    calls: list[Any] = []

    def instead(scenario: Scenario, out: Path, resources: Resources, watcher: run.Watcher) -> Any:
        calls.append((scenario, out, resources))
        watcher.step("a step")
        watcher.progress(Progress(phase="training", arm="dual", arms=1, rounds=2))
        return sample(users=20), ReportFiles(out / "report.json", out / "users.parquet", out / "report.html")

    monkeypatch.setattr(run, "simulate", instead)
    monkeypatch.setattr(launch, "available_cpus", lambda: 6)
    yield calls


def test_options_win_over_set_and_scenario(asked: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text("users = 3\nseed = 4\n[federation]\nrounds = 5\nserver-lr = 0.5\n[world]\ngroups = 2\n")
    options = ["--users", "30", "--epsilon", "2", "--arms", "dual,dual_dp", "--out", str(tmp_path / "out")]
    result = RUNNER.invoke(
        cli.app, ["simulate", str(file), *options, "--set", "seed=6", "--set", "federation.rounds=7"]
    )
    assert result.exit_code == 0, result.output
    ((scenario, out, resources),) = asked
    config = scenario.config
    assert (config.users, config.seed, config.federation.rounds) == (30, 6, 7)
    assert (config.federation.server_lr, config.privacy.epsilon) == (0.5, 2.0)
    assert config.arm_names == ("dual", "dual_dp")
    assert scenario.tables == {"world": {"groups": 2}}
    assert out == tmp_path / "out"
    assert resources == Resources(1, 6, 0.0)  # users share texts: one node, all CPUs
    assert str(out / "report.html") in result.output.replace("\n", "")


def test_never_more_nodes_than_users(asked: list[Any]) -> None:
    own = ["--set", "train.local-steps=2"]  # each user needs passes of his own: a node a CPU
    assert RUNNER.invoke(cli.app, ["simulate", "--users", "2", *own]).exit_code == 0
    assert RUNNER.invoke(cli.app, ["simulate", "--users", "0", "--cpus-per-node", "3"]).exit_code == 0
    assert RUNNER.invoke(cli.app, ["simulate", "--nodes", "40"]).exit_code == 0
    assert [resources.nodes for _, _, resources in asked] == [2, 2, 40]


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "simulate", interrupted)
    result = RUNNER.invoke(cli.app, ["simulate"])
    assert result.exit_code == 130
    assert "the same command goes on" in result.output


def test_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    shown = duet("simulate", "--source", "polis", "--path", "nowhere", "--out", "o", cwd=tmp_path)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1] == "error: path='nowhere': no such file or folder"
    assert "Traceback" not in shown.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    shown = duet("--debug", "simulate", "--set", "userz=1", cwd=tmp_path)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "did you mean 'users'" in shown.stderr


@pytest.mark.parametrize("arguments", [["simulate", "--users", "x"], ["simulate", "--nope"], ["nope"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert RUNNER.invoke(cli.app, arguments).exit_code == 2


def test_prepare_writes_a_population(tmp_path: Path) -> None:
    result = RUNNER.invoke(cli.app, ["prepare", str(tmp_path / "world"), "--users", "8", "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert "8 users" in result.output
    assert len(Population.load(tmp_path / "world").users) == 8


def test_convert_names_the_bad_line(tmp_path: Path) -> None:
    (tmp_path / "judgments.jsonl").write_text('{"user_id": "u"}\n')
    result = RUNNER.invoke(
        cli.app, ["convert", "ukpconvarg", str(tmp_path / "judgments.jsonl"), str(tmp_path / "o.jsonl")]
    )
    assert isinstance(result.exception, DataError)
    assert "line 1" in str(result.exception)


def test_report_is_written_again_from_its_files(tmp_path: Path) -> None:
    files = write_report(sample(users=25), tmp_path)
    first = json.loads(files.json.read_text())
    files.html.unlink()
    result = RUNNER.invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert files.html.is_file()
    assert json.loads(files.json.read_text()) == first


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 0}', '{"schema": 1}'])
def test_report_of_what_is_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    result = RUNNER.invoke(cli.app, ["report", str(tmp_path)])
    assert isinstance(result.exception, DataError)


def test_version_names_what_results_depend_on() -> None:
    result = RUNNER.invoke(cli.app, ["version"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == [
        "fedduet",
        "flwr",
        "torch",
        "transformers",
        "opacus",
    ]


def test_progress_in_words() -> None:
    train = Progress(
        phase="training", arm="dual", arm_index=1, arms=3, round=2, rounds=9, replies=4, rejected=1
    )
    assert terminal.describe(train) == ("arm dual (2 of 3)", "4 nodes, 1 rejected")
    personal = Progress(phase="personalising", arm="local", arms=3, replies=2)
    assert terminal.describe(personal) == ("arm local (1 of 3)", "personal phase: 2 nodes")
