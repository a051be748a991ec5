"""The picture of an audit: scores of included and left-out canaries, and each bound against its claim."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulation.figures import BLUE, GREEN, GREY, INK, MUTED, ORANGE

if TYPE_CHECKING:
    from simulation.audit import Audit, PathAudit
    from simulation.canaries import Observed

BINS = 24
DPI = 150


def audit_picture(audit: Audit) -> bytes:
    """A PNG: one histogram for each path that was observed alone, and below them bounds against claims."""
    seen = [(name, path) for name, path in audit.paths.items() if path.observed is not None]
    columns = min(3, len(seen))
    rows = -(-len(seen) // columns)
    below = 0.5 + 0.28 * len(audit.paths)
    figure = Figure(figsize=(3.9 * columns, 2.7 * rows + below + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[2.7] * rows + [below])
    for place, (name, path) in enumerate(seen):
        _histogram(figure.add_subplot(grid[place // columns, place % columns]), name, path)
    _bounds(figure.add_subplot(grid[rows, :]), audit)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    verdict = "no fault found" if audit.passed else "FAULT FOUND"
    figure.suptitle(f"Privacy audit: {verdict}", fontsize=12, color=INK, fontweight="bold")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _histogram(axes: Axes, name: str, path: PathAudit) -> None:
    """Densities of the summed scores, with the Gaussians that the declared mechanism gives."""
    observed = path.observed
    assert observed is not None
    total, included = observed.scores.sum(0), observed.included
    edges = np.linspace(total.min(), total.max(), BINS + 1)
    for chosen, colour, label in ((~included, GREY, "left out"), (included, BLUE, "included")):
        axes.hist(total[chosen], bins=edges.tolist(), density=True, color=colour, alpha=0.45, label=label)
    _expected(axes, observed, edges)
    failed = path.caught()
    axes.set_title(name + ("" if path.gate else "\nFAILED: " + ", ".join(failed[:2])), fontsize=9)
    axes.title.set_color(INK if path.gate else ORANGE)
    axes.set_xlabel("score, in units of the clip", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _expected(axes: Axes, observed: Observed, edges: np.ndarray) -> None:
    """The two Gaussians: T sigma^2 around 0, and with the included ones' mean and sampling variance."""
    event, strength = observed.event, float(observed.strength.mean())
    q, steps, sigma = event.sampling_rate, event.steps, event.noise_multiplier
    x = np.linspace(edges[0], edges[-1], 300)
    out = steps * sigma**2
    into = out + steps * q * (1 - q) * strength**2
    for mean, variance, colour, style in (
        (0.0, out, INK, "--"),
        (q * steps * strength, into, BLUE, "-"),
    ):
        density = np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        axes.plot(
            x, density, style, color=colour, lw=1.3, label="expected, " + ("left out", "included")[mean > 0]
        )


def _bounds(axes: Axes, audit: Audit) -> None:
    """One row a path: the claim as a line, the lower bound as a dot that must not pass it."""
    names = list(audit.paths)
    for row, path in enumerate(audit.paths.values()):
        good = path.within_claim
        axes.plot([0, path.claimed], [row, row], color=GREY, lw=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(path.claimed, row, "|", color=INK, ms=13, mew=2)
        axes.plot(path.bound.epsilon, row, "o", color=GREEN if good else ORANGE, ms=7)
        right = max(path.claimed, path.bound.epsilon)
        text = f"  at least {path.bound.epsilon:.2f}, claimed {path.claimed:.2f}"
        axes.annotate(text, (right, row), va="center", fontsize=8, color=MUTED if good else ORANGE)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    most = max(max(path.claimed, path.bound.epsilon) for path in audit.paths.values())
    axes.set_xlim(0, 1.4 * most)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(
        "epsilon of one record: lower bound that the audit found (dot) and the claim (bar); "
        "a dot beyond its bar refutes the claim",
        fontsize=8,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
