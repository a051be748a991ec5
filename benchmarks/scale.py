"""Does a user cost the same when there are many?  Rounds, personal phase and memory by users.

    duet benchmark scale --out docs/scale.json

Simulated people at default settings (the reward head alone, texts shared), arm ``dual`` without and
with DP on every upload, one thread.  Each row is a process of its own, so that its peak of resident
memory is its own; the features of the texts, the same for all rows, are computed before.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fl_core.atomic import write_json
from fl_core.errors import RunError
from fl_core.frozen_features import FEATURES_FILE
from fl_core.profiles import peak_mb

WORLD = ("world.prompts=24", "world.answers=8")
"""Few texts, so that a hundred users rate all of them: rows then differ in users alone."""
ARMS = ("dual", "dual_dp")
MILLI = 1000.0


def run(out: Path, users: Sequence[int], rounds: int, say: Callable[[str], None]) -> None:
    """Measure each number of ``users``, print a table and write ``out``.

    Raises ``RunError`` where a row's process fails.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in sorted(users):
            population = _population(folder / f"world-{count}", count)
            for arm in ARMS:
                rows.append(_measured(population, folder, arm, rounds))
                say(line(rows[-1]))
    few = {row["arm"]: row for row in reversed(rows)}
    for row in rows:
        first = few[row["arm"]]
        row["round_a_user_over_first"] = row["round_ms_a_user"] / first["round_ms_a_user"]
        row["personal_a_user_over_first"] = row["personal_ms_a_user"] / first["personal_ms_a_user"]
    write_json(out, {"machine": platform.processor() or platform.machine(), "rounds": rounds, "rows": rows})


def line(row: dict[str, Any]) -> str:
    """One row for a person."""
    return (
        f"{row['users']:>6} users, {row['arm']:<7}: a round {row['round_ms_a_user']:.3f} ms a user, "
        f"personal phase {row['personal_ms_a_user']:.2f} ms a user, peak {row['peak_mb']:.0f} MiB, "
        f"on disk {row['disk_bytes_a_user']:.0f} bytes a user"
    )


def _population(folder: Path, users: int) -> Path:
    from simulation.run import save_population
    from simulation.scenario import nested_options, read_scenario
    from simulation.sources import build_population

    scenario = read_scenario(None, nested_options(["population=world", f"users={users}", *WORLD]))
    save_population(build_population(scenario.config, scenario.tables), folder)
    return folder


def _measured(population: Path, folder: Path, arm: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", str(population), arm, str(rounds)]
    features = folder / FEATURES_FILE
    for measure in (False, True):  # the first call leaves the features, whose cost is not a user's
        if not measure and features.exists():
            continue
        out = folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if features.exists():
            shutil.copy(features, out / FEATURES_FILE)
        done = subprocess.run(
            [*command, str(out), str(int(measure))], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RunError(f"{population.name}, arm {arm!r}: the row failed: {done.stderr.strip()[-500:]}")
        shutil.copy(out / FEATURES_FILE, features)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(population: Path, arm: str, rounds: int, out: Path, measure: bool) -> dict[str, Any]:
    import torch

    from fl_client.trainer import NodeTrainer
    from fl_core.config import RunConfig
    from simulation.in_process import rounds_of

    torch.set_num_threads(1)
    config = RunConfig.from_flat({"federation.rounds": rounds})
    node = NodeTrainer(config, population, out, 0, 1)
    users = len(node.cohort.users)
    node.arm(arm)
    if not measure:
        return {}
    times, started = [], time.perf_counter()
    for _, theta in rounds_of(node, config, arm):  # noqa: B007 - the last one is kept
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    started = time.perf_counter()
    node.personalize(arm, rounds + 1, theta)
    personal = time.perf_counter() - started
    size = sum(file.stat().st_size for file in (out / "arms").rglob("*") if file.is_file())
    return {
        "users": users,
        "arm": arm,
        "records": len(node.arm(arm).train_examples),
        "round_ms_a_user": MILLI * statistics.median(times[1:] or times) / users,
        "round_ms_a_user_range": [MILLI * time / users for time in (min(times), max(times))],
        "personal_ms_a_user": MILLI * personal / users,
        "peak_mb": peak_mb(),
        "disk_bytes_a_user": size / users,
    }


if __name__ == "__main__":
    folder, arm, count, target, measured = sys.argv[1:]
    print(json.dumps(_row(Path(folder), arm, int(count), Path(target), measured == "1")))
