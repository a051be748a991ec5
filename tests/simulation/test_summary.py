"""The terminal shows the page's first lines and arms."""

from __future__ import annotations

import io

from rich.console import Console

from simulation.findings import findings
from simulation.summary import print_summary
from tests.simulation.report_sample import sample


def shown(width: int = 100) -> str:
    stream = io.StringIO()
    print_summary(sample(), Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def test_the_headline_and_all_arms_are_shown() -> None:
    text = shown(200)
    assert text.startswith(findings(sample()).headline)
    for part in ("dual with DP", "79.2", "matrix factorization", "Whom did it hurt?", "unit: one record"):
        assert part in text


def test_eighty_columns_cut_no_figure() -> None:
    text = shown(80)
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.strip().startswith("dual  "))
    assert row.split() == ["dual", "79.2", "78.2–80.1", "66.7", "45.2", "18.0", "1.8", "96.0", "none"]
