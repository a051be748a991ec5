"""``duet simulate --profile``: where a run's time went, and how much memory it took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fl_core.atomic import write_json
from fl_core.profiles import Profile, read_profiles

MEASURING = "measuring"
"""The process that evaluates and reports; all others are Flower's nodes."""
PROFILE_FILE = "profile.json"


def summarise(profiles: Sequence[Profile], training: float, total: float) -> dict[str, Any]:
    """Seconds by part of the nodes and of the evaluation, and what passed beside.

    ``training``: seconds from Flower's start to its end; ``total``: of the whole run.  Nodes may
    work at once, so Flower's own part, and waiting, is what the busiest of them leaves.
    """
    nodes = [profile for profile in profiles if profile.process != MEASURING]
    measuring = [profile for profile in profiles if profile.process == MEASURING]
    return {
        "nodes": _together(nodes),
        "node_processes": len(nodes),
        "flower_and_waiting": max(0.0, training - max((node.busy for node in nodes), default=0.0)),
        "measuring": _together(measuring),
        "training_seconds": training,
        "total_seconds": total,
        "peak_mb": {
            "largest node process": max((node.peak_mb for node in nodes), default=0.0),
            "measuring": max((one.peak_mb for one in measuring), default=0.0),
        },
    }


def write_profile(out: Path, seconds: dict[str, float]) -> Table:
    """Write ``out/profile.json`` from the processes' files and return it as a table.

    ``seconds`` are those of the run's steps, as ``report.json`` has them.
    """
    training = seconds.get("training", 0.0)
    steps = ("prepare", "training", "evaluate", "report")
    found = summarise(read_profiles(out), training, sum(seconds.get(step, 0.0) for step in steps))
    write_json(out / PROFILE_FILE, found)
    return table(found)


def table(found: dict[str, Any]) -> Table:
    """A row a part: seconds in node processes and in the evaluation."""
    made = Table(
        title="\nwhere the time went, seconds", title_justify="left", title_style="", box=SIMPLE_HEAD
    )
    made.add_column("part")
    for column in (f"nodes ({found['node_processes']} processes)", "measuring"):
        made.add_column(column, justify="right")
    nodes, measuring = found["nodes"], found["measuring"]
    for part in sorted(
        {*nodes, *measuring}, key=lambda part: -nodes.get(part, 0.0) - measuring.get(part, 0.0)
    ):
        made.add_row(part, *(f"{own[part]:.1f}" if part in own else "" for own in (nodes, measuring)))
    made.add_row("Flower, and waiting for it", f"{found['flower_and_waiting']:.1f}", "")
    made.add_section()
    peak = found["peak_mb"]
    made.add_row("peak memory, MiB", *(f"{value:.0f}" for value in peak.values()))
    return made


def _together(profiles: Sequence[Profile]) -> dict[str, float]:
    parts = {part for profile in profiles for part in profile.seconds}
    return {part: sum(profile.seconds.get(part, 0.0) for profile in profiles) for part in sorted(parts)}
