"""How many users a second one GPU trains: the rows of ``benchmarks.speed``, in bfloat16.

    benchmarks/gpu.sh                      on a machine with a GPU; about 8 minutes at most
    benchmarks/gpu.sh --device cpu --quick

First a user's step without noise is compared with that of the CPU in float32: in float32 it must
agree to ``AGREEMENT``, so that what follows is the same mathematics, and in bfloat16 to
``BFLOAT16_AGREEMENT`` of its length.  Then every row is timed in bfloat16 (attention: torch's fused
one) against one PEFT + Opacus client after another on the same device and in the same precision,
and, for ``HOURLY``, 16 records of 128 tokens a user, passes of several sizes.  Noise comes from
NumPy on the CPU, as it does in a run.  (With ``--device cpu`` rows are timed in float32: bfloat16
attention is very slow there.)
"""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed
from benchmarks.speed import AGREEMENT, BFLOAT16_AGREEMENT, WORKLOADS, Jobs, Place, Workload
from fl_core.atomic import write_json
from fl_core.base_model import CPU
from fl_core.config import DeviceName
from fl_core.device import use_device
from fl_core.errors import DuetError

HOURLY = Workload("135M shape, 16 x 128, top 8", "135m", 128, 16, 8, 64, 4)
WHOLE = Workload("135M shape, 16 x 128, all layers", "135m", 128, 16, 30, 64, 4)
PASSES = (8192, 16384, 32768, 65536)
"""Tokens of a pass that are tried."""
CHECKED = ("embedded, T=96, b=8", "135M shape, T=64, b=8")


def rows(quick: bool) -> tuple[Workload, ...]:
    """What is timed, the most wanted first: the clock may stop it."""
    known = {work.name: work for work in WORKLOADS}
    if quick:
        chosen = (known["embedded, small records"], known["embedded, texts shared"])
        return tuple(replace(work, users=4, clients=1, texts=min(work.texts, 8)) for work in chosen)
    large = known.pop("135M shape, T=64, b=8")
    return HOURLY, WHOLE, replace(large, users=64, clients=4), *known.values()


def checks(device: torch.device, quick: bool) -> dict[str, dict[str, float]]:
    """Distances of a step on ``device`` from the CPU's in float32, by workload and precision.

    Raises ``DuetError`` where one is out of its bound.
    """
    known = {work.name: work for work in WORKLOADS}
    if quick:
        small = known["embedded, small records"]
        return {small.name: checked(replace(small, users=3), device)}
    return {name: checked(replace(known[name], users=3), device) for name in CHECKED}


def checked(work: Workload, device: torch.device) -> dict[str, float]:
    """One workload's distances: of parameters in float32, ``step_distance`` in bfloat16."""
    start, wanted = _stepped(work, Place())
    _, exact = _stepped(work, Place(device))
    _, rounded = _stepped(work, Place(device, "bfloat16"))
    found = {
        "float32": float((exact - wanted).abs().max()),
        "bfloat16": speed.step_distance(rounded - start, wanted - start),
    }
    for name, bound in (("float32", AGREEMENT), ("bfloat16", BFLOAT16_AGREEMENT)):
        if not found[name] <= bound:
            raise DuetError(
                f"{work.name}: a step on {device} in {name} is {found[name]:.1e} from the CPU's in float32, "
                f"more than {bound:g}; nothing is timed"
            )
    return found


def _stepped(work: Workload, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """(parameters before, [U, D] after a clipped step without noise) of all users of a workload."""
    jobs = Jobs(work, place)
    return jobs.theta, jobs.cohort(jobs.engine, range(work.users), 0, private=True, sigma=0.0)


def pass_sizes(work: Workload, place: Place, repetitions: int) -> Iterator[tuple[int, float | None]]:
    """(tokens of a pass, users a second of the engine with DP), None where memory does not suffice."""
    for tokens in PASSES:
        try:
            yield tokens, _users_a_second(Jobs(work, replace(place, pass_tokens=tokens)), repetitions)
        except torch.OutOfMemoryError:
            yield tokens, None
        _forget(place)


def _users_a_second(jobs: Jobs, repetitions: int) -> float:
    everyone, times = range(jobs.work.users), []
    jobs.cohort(jobs.engine, everyone, 0, private=True)  # all texts are kept from here on
    for _ in range(repetitions):
        jobs.place.wait()
        start = time.perf_counter()
        jobs.cohort(jobs.engine, everyone, 0, private=True)
        jobs.place.wait()
        times.append(time.perf_counter() - start)
    return jobs.work.users / statistics.median(times)


def _forget(place: Place) -> None:
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures belong to."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def run(
    out: Path, name: DeviceName, quick: bool, minutes: float, repetitions: int, say: Callable[[str], None]
) -> None:
    """Check, measure, print a table and write ``out`` after every row; no row begins after ``minutes``.

    Raises ``ConfigurationError`` without the device, ``DuetError`` where results are not the CPU's.
    """
    started, device = time.monotonic(), use_device(name)
    place = Place(device, "float32" if device == CPU else "bfloat16")
    found: dict[str, Any] = {**machine(device), "repetitions": repetitions, "dtype": place.dtype}
    say(f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}")
    found["agreement_with_cpu_float32"] = checks(device, quick)
    for work, apart in found["agreement_with_cpu_float32"].items():
        say(f"{work}: float32 {apart['float32']:.1e}, bfloat16 {apart['bfloat16']:.1e} of a step")
    say(speed.HEADING)
    found["rows"], found["left_out"] = [], []
    for work in rows(quick):
        if time.monotonic() - started > 60 * minutes:
            found["left_out"].append(work.name)
            continue
        _forget(place)
        row = speed.measure(work, repetitions, place)
        row["users_an_hour"] = 3600 * row["users_a_second"]
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        found["rows"].append(row)
        say(speed.line(row))
        write_json(out, {**found, "seconds": time.monotonic() - started})
    if device != CPU and time.monotonic() - started < 60 * minutes:
        found["pass_tokens"] = dict(pass_sizes(HOURLY, place, repetitions))
        say(f"users a second by tokens of a pass, {HOURLY.name}: {found['pass_tokens']}")
    for row in found["rows"]:
        if row["workload"] in (HOURLY.name, WHOLE.name):
            say(f"{row['workload']}: {row['users_an_hour']:,.0f} users an hour")
    if found["left_out"]:
        say(f"no time was left for {', '.join(found['left_out'])}; give more --minutes")
    write_json(out, {**found, "seconds": time.monotonic() - started})
