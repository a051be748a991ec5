"""The report's pictures: SVG without a display, a window or a global state of matplotlib.

Each function returns an SVG whose bytes depend on its input only, or ``None`` where there is
nothing to draw.  ``dark`` turns such an SVG into its twin for a dark page.  Colours are Okabe
and Ito's (2008), told apart by colour-blind readers; the personal kinds and the arms differ in
marker or line style as well.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation import wording
from simulation.comparison import changes, group_gains
from simulation.harm import baseline
from simulation.results import Results

INK, MUTED, GRID = "#1b1e23", "#5c6570", "#d9dde2"
BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072b2", "#d55e00", "#009e73", "#b5578f", "#56b4e9", "#7f7f7f"
AMBER, PAPER = "#e69f00", "#fdfdfc"

_DARK = {
    INK: "#e8eaed",
    MUTED: "#a8b0ba",
    GRID: "#3a4048",
    PAPER: "#16191d",
    BLUE: "#4fb0ea",
    ORANGE: "#f2894a",
    GREEN: "#35c79b",
    PINK: "#dd8fbd",
    GREY: "#a3a3a3",
}

ARM_COLOURS = {"base": GREY, "shared": ORANGE, "local": GREEN, "dual": BLUE}
_MARKERS = {"base": "D", "shared": "s", "local": "^", "dual": "o"}
_STYLE: Any = {  # matplotlib types its settings as a literal of 300 names
    "svg.fonttype": "none",
    "svg.hashsalt": "duet",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "axes.axisbelow": True,
}
_WIDTH = 5.0
_MOST_GROUPS = 14


def dark(svg: bytes) -> bytes:
    """The same picture in colours for a dark page."""
    for light, other in _DARK.items():
        svg = svg.replace(light.encode(), other.encode())
    return svg


def accuracy_by_arm(results: Results, unseen: bool = False) -> bytes | None:
    """Dots with 95% intervals, one row an arm; the references as labelled vertical lines."""
    arms = [(name, arm) for name, arm in results.arm_items(unseen) if arm.accuracy is not None]
    if not arms:
        return None
    references = _accuracies(results.references_unseen if unseen else results.references)
    with _figure(0.85 + 0.3 * len(arms) + 0.24 * len(references)) as (figure, axes):
        for row, (name, arm) in enumerate(arms):
            low, high = arm.ci95 or (arm.accuracy, arm.accuracy)
            axes.plot([100 * low, 100 * high], [row, row], color=_colour(name), lw=1.8)  # type: ignore[operator]
            axes.plot(100 * arm.accuracy, row, **_marker(name))  # type: ignore[operator]
        _reference_rows(axes, references, len(arms))
        labels = [wording.name(name) for name, _ in arms]
        axes.set_yticks(range(len(arms) + len(references)), labels + [wording.name(n) for n, _ in references])
        axes.set_ylim(len(arms) + len(references) - 0.4, -0.6)
        axes.set_xlabel("accuracy, mean over users (%)")
        axes.grid(axis="x", lw=0.6)
        return _svg(figure)


def change_by_user(results: Results, arm: str = "dual") -> bytes | None:
    """Every user's change under ``arm`` against its shared model, sorted from loss to gain."""
    paired = changes(results, arm, baseline(results))
    paired = None if paired is None else np.sort(100 * paired[~np.isnan(paired)])
    if paired is None or not len(paired):
        return None
    share = (np.arange(len(paired)) + 0.5) / len(paired) * 100
    worse, same = float((paired < 0).mean()), float((paired == 0).mean())
    with _figure(2.5) as (figure, axes):
        axes.fill_between(share, paired, 0, where=list(paired <= 0), color=ORANGE, lw=0, step="mid")
        axes.fill_between(share, paired, 0, where=list(paired >= 0), color=BLUE, lw=0, step="mid")
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_xlim(0, 100)
        axes.set_ylim(*_change_limits(results))
        axes.set_xlabel("users, sorted by change (%)")
        axes.set_ylabel("change (points)")
        axes.set_title(
            f"{100 * worse:.0f}% worse, {100 * same:.0f}% equal, {100 * (1 - worse - same):.0f}% better",
            fontsize=9,
            loc="left",
        )
        axes.grid(axis="y", lw=0.6)
        return _svg(figure)


def _change_limits(results: Results) -> tuple[float, float]:
    """Points that hold all users' changes under every dual arm, so that pictures compare."""
    found = [changes(results, arm, baseline(results)) for arm in ("dual", "dual_dp")]
    ends = np.concatenate(
        [[0.0], *(100 * values[~np.isnan(values)] for values in found if values is not None)]
    )
    margin = 0.05 * max(1.0, float(ends.max() - ends.min()))
    return float(ends.min()) - margin, float(ends.max()) + margin


def accuracy_by_records(results: Results) -> bytes | None:
    """Accuracy of each arm by how many records a user has; dashed lines are private arms."""
    arms = [(name, arm.by_records) for name, arm in results.arm_items() if arm.by_records]
    if not arms:
        return None
    buckets = list(arms[0][1])
    with _figure(3.1) as (figure, axes):
        for offset, (name, entries) in zip(np.linspace(-0.18, 0.18, len(arms)), arms, strict=True):
            values = [_percent(entries.get(bucket, {}).get("accuracy")) for bucket in buckets]
            dashed = "--" if name.endswith("_dp") else "-"
            axes.plot(
                np.arange(len(buckets)) + offset,
                values,
                dashed,
                lw=1,
                label=wording.name(name),
                **_marker(name),
            )
        counts = [arms[0][1][bucket].get("users") for bucket in buckets]
        labels = [
            f"{b}\n{n:,} users" if n is not None else str(b) for b, n in zip(buckets, counts, strict=True)
        ]
        axes.set_xticks(range(len(buckets)), labels)
        axes.set_xlabel("records of a user")
        axes.set_ylabel("mean accuracy (%)")
        axes.grid(axis="y", lw=0.6)
        _legend_above(axes, columns=4)
        return _svg(figure)


def change_by_group(results: Results, arm: str = "dual") -> bytes | None:
    """Mean change of each group under ``arm``, with 95% intervals; the extremes if many."""
    gains = list(group_gains(results, arm, baseline(results)))
    if len(gains) < 2:
        return None
    left_out = max(0, len(gains) - _MOST_GROUPS)
    if left_out:
        gains = gains[: _MOST_GROUPS // 2] + gains[-_MOST_GROUPS // 2 :]
    with _figure(0.9 + 0.27 * len(gains)) as (figure, axes):
        for row, item in enumerate(gains):
            colour = ORANGE if item.value < 0 else BLUE
            low, high = item.interval or (item.value, item.value)
            axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=1.8)
            axes.plot(100 * item.value, row, marker="s" if item.value < 0 else "o", color=colour, ms=5)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(gains)), [f"{_short(item.group)} ({item.users:,})" for item in gains])
        axes.set_ylim(len(gains) - 0.4, -0.6)
        note = f"; {left_out} middle groups left out" if left_out else ""
        axes.set_xlabel(f"change in points{note}")
        axes.grid(axis="x", lw=0.6)
        return _svg(figure)


def training_curves(results: Results) -> bytes | None:
    """Norm of the mean update by round, one line an arm."""
    curves = {name: rows for name, rows in results.curves.items() if len(rows) > 1}
    if not curves:
        return None
    with _figure(2.5) as (figure, axes):
        for name, rows in curves.items():
            dashed = "--" if name.endswith("_dp") else "-"
            norms = [_number(row.get("update_norm")) for row in rows]
            axes.plot(
                [row["round"] for row in rows], norms, dashed, color=_colour(name), label=wording.name(name)
            )
        axes.set_xlabel("round")
        axes.set_ylabel("norm of the update")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", lw=0.6)
        _legend_above(axes, columns=4)
        return _svg(figure)


def sweep_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy gain over shared by number of records, one line a personal kind, as SVG.

    ``rows``: ``{kind, dp, records_bucket, accuracy_gain, ci}``, gains as fractions, ``ci`` as
    (low, high) or ``None``; buckets and kinds appear in the order of their first row.  Left
    panel: without differential privacy; right: with it.
    """
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    buckets = list(dict.fromkeys(str(row["records_bucket"]) for row in rows))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 3.2), layout="constrained", facecolor=PAPER)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, dp in zip(panels, (False, True), strict=True):
            axes.set_facecolor(PAPER)
            for index, kind in enumerate(kinds):
                chosen = [row for row in rows if str(row["kind"]) == kind and bool(row["dp"]) == dp]
                _sweep_line(axes, chosen, buckets, index, len(kinds))
            axes.axhline(0, color=INK, lw=0.8)
            axes.set_xticks(range(len(buckets)), buckets)
            axes.set_xlabel("records of a user")
            axes.set_title("with differential privacy" if dp else "without differential privacy", fontsize=9)
            axes.grid(axis="y", lw=0.6)
        panels[0].set_ylabel("accuracy gain over shared (points)")
        handles, labels = panels[0].get_legend_handles_labels()
        if not handles:
            handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
        return _svg(figure)


_SWEEP = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (AMBER, "v"), (SKY, "P"), (GREY, "X"))


def _sweep_line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], buckets: list[str], index: int, of: int
) -> None:
    if not rows:
        return
    colour, marker = _SWEEP[index % len(_SWEEP)]
    offset = 0.0 if of == 1 else 0.24 * (index / (of - 1) - 0.5)
    x = np.array([buckets.index(str(row["records_bucket"])) + offset for row in rows])
    y = np.array([_percent(row["accuracy_gain"]) for row in rows])
    for place, row in zip(x, rows, strict=True):
        if row.get("ci") is not None:
            axes.plot([place, place], [100 * end for end in row["ci"]], color=colour, lw=1.2)
    axes.plot(x, y, "-", marker=marker, color=colour, lw=1, ms=5, label=wording.name(str(rows[0]["kind"])))


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """One set of axes in the report's style, of the report's width and ``height`` inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=PAPER)
        axes = figure.subplots()
        axes.set_facecolor(PAPER)
        yield figure, axes


def _svg(figure: Figure) -> bytes:
    """The figure as SVG without a date, so that equal input gives equal bytes."""
    stream = io.BytesIO()
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # a font that this machine lacks is no news to the reader
    try:
        figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor=PAPER)
    finally:
        log.setLevel(level)
    return stream.getvalue()


def _accuracies(references: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float]]:
    rated = [(name, _number(entry.get("accuracy"))) for name, entry in references.items()]
    return [(name, value) for name, value in rated if not np.isnan(value)]


def _reference_rows(axes: Axes, references: list[tuple[str, float]], first: int) -> None:
    for row, (_, value) in enumerate(references, start=first):
        axes.axvline(100 * value, color=MUTED, lw=0.9, ls=":")
        axes.plot(100 * value, row, marker="|", ms=9, mew=1.8, color=MUTED, ls="none")


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.12, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8,
        columnspacing=1.0,
        handlelength=1.8,
    )


def _colour(arm: str) -> str:
    return ARM_COLOURS.get(arm.removesuffix("_dp"), INK)


def _marker(arm: str) -> dict[str, Any]:
    """Marker of an arm: shape by kind of arm, hollow with differential privacy."""
    private = arm.endswith("_dp")
    return {
        "marker": _MARKERS.get(arm.removesuffix("_dp"), "o"),
        "color": _colour(arm),
        "markerfacecolor": PAPER if private else _colour(arm),
        "ms": 6,
    }


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _percent(value: Any) -> float:
    return 100 * _number(value)


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
