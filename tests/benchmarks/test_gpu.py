"""The benchmark for a GPU, on the CPU: it checks before it times, keeps its time, and writes its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu, speed
from benchmarks.cli import app
from fl_core.base_model import CPU
from fl_core.errors import ConfigurationError, DuetError
from tests.pretend_device import pretend_device

ROOT = Path(__file__).resolve().parents[2]
SMALL = speed.Workload("small", "embedded", 8, 2, 1, 3, 1)
TEXTS = replace(SMALL, name="small, texts shared", texts=5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest rows; what is compared before has a test of its own."""
    monkeypatch.setattr(gpu, "rows", lambda quick: (SMALL, TEXTS))
    monkeypatch.setattr(gpu, "checks", lambda device, quick: {})


def test_a_step_is_compared_with_the_cpus_in_both_precisions() -> None:
    found = gpu.checked(SMALL, CPU)
    assert found["float32"] == 0.0
    assert 1e-4 < found["bfloat16"] < 0.1


def test_a_step_that_is_not_the_cpus_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu._stepped

    def wrong(work: speed.Workload, place: speed.Place) -> Any:
        before, after = real(work, place)
        return before, after + (after - before) * (0.2 if place.dtype == "bfloat16" else 0.0)

    monkeypatch.setattr(gpu, "_stepped", wrong)
    with pytest.raises(DuetError, match=r"bfloat16 is .* more than 0\.1; nothing is timed"):
        gpu.checked(SMALL, CPU)


def test_both_contenders_agree_on_another_device() -> None:
    """Also of the baseline: its tokens, labels and head are where the base is."""
    with pretend_device() as device:
        place = speed.Place(device)
        jobs = speed.Jobs(SMALL, place)
        assert speed.check_agreement(jobs, speed.Baseline(jobs)) < 1e-6
        shared = speed.Jobs(TEXTS, place)
        assert speed.check_agreement(shared, speed.Baseline(shared)) < 1e-6


def test_figures_are_written_and_the_clock_is_kept(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "gpu.json", []
    gpu.run(out, "cpu", True, 10.0, 1, said.append)
    figures = json.loads(out.read_text())
    assert {row["workload"] for row in figures["rows"]} == {SMALL.name, TEXTS.name}
    assert {"device", "torch", "cuda", "date", "agreement_with_cpu_float32"} <= figures.keys()
    row = figures["rows"][0]
    assert row["users_an_hour"] == 3600 * row["users_a_second"] and row["agreement"] < 1e-6
    assert any(SMALL.name in sentence for sentence in said)
    said.clear()
    gpu.run(out, "cpu", True, 0.0, 1, said.append)
    assert json.loads(out.read_text())["left_out"] == [SMALL.name, TEXTS.name]
    assert "--minutes" in said[-1]


def test_sizes_of_a_pass_are_tried_until_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []

    def timed(jobs: speed.Jobs, repetitions: int) -> float:
        seen.append(jobs.engine.micro_batch_tokens)
        if jobs.engine.micro_batch_tokens > 16384:
            raise torch.OutOfMemoryError("no memory is left")
        return 3.0

    monkeypatch.setattr(gpu, "_users_a_second", timed)
    found = dict(gpu.pass_sizes(SMALL, speed.Place(), 1))
    assert found == {8192: 3.0, 16384: 3.0, 32768: None, 65536: None} and tuple(seen) == gpu.PASSES


def test_real_rows_name_what_exists_and_the_hourly_one_is_first() -> None:
    assert gpu.rows(False)[0] == gpu.HOURLY and gpu.HOURLY.tokens == 128 and gpu.HOURLY.batch == 16
    assert {work.name for work in speed.WORKLOADS} <= {work.name for work in gpu.rows(False)}
    assert set(gpu.CHECKED) <= {work.name for work in speed.WORKLOADS}
    assert len(gpu.rows(True)) == 2


def test_the_command_needs_a_device_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["gpu", "--device", "tpu"]).exit_code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    failed = CliRunner().invoke(app, ["gpu"])
    assert isinstance(failed.exception, ConfigurationError)


@pytest.mark.slow
def test_the_script_runs_from_anywhere_without_a_gpu(tmp_path: Path) -> None:
    command = [
        "bash",
        str(ROOT / "benchmarks" / "gpu.sh"),
        "--device",
        "cpu",
        "--quick",
        "--repetitions",
        "1",
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "gpu.json")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 2
