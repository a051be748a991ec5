"""The report's first lines and its table of arms in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulation import wording
from simulation.findings import Answer, findings
from simulation.results import ArmResult, Results

_COLOURS = {"good": "green", "bad": "red", "unclear": "yellow", "plain": "cyan"}
_COLUMNS = (
    "arm",
    "accu-\nracy",
    "95%\ninterval",
    "bottom\ndecile",
    "against\nmajority",
    "worse\noff",
    "signifi-\ncantly",
    "worst\nvalues",
    "ε, one\nrecord",
)


_LINES = (4, 2, 1)
"""Sentences shown under each of the three questions."""


def print_summary(results: Results, console: Console | None = None) -> None:
    """Print the first lines and the tables of arms to ``console`` (default: standard output)."""
    (console or Console()).print(summary(results))


def summary(results: Results) -> Group:
    """The first lines and the tables as one rich renderable; the page has the details."""
    first = findings(results)
    parts: list[Text | Table | Padding] = [Text(first.headline, style="bold")]
    for answer, lines in zip(first.answers, _LINES, strict=True):
        parts += _answer(answer, lines)
    parts += [Text(""), arms_table(results)]
    if results.arms_unseen:
        parts.append(arms_table(results, unseen=True))
    parts += [Text(f"Mind: {text}", style="dim") for text in first.cautions]
    return Group(*parts)


def arms_table(results: Results, unseen: bool = False) -> Table:
    """One row an arm, then the references."""
    title = "texts in nobody's training" if unseen else "texts that others' training contains"
    table = Table(
        title=f"\n{title}, % of test pairs",
        title_justify="left",
        title_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    for name, arm in results.arm_items(unseen):
        table.add_row(*_cells(name, arm), style="bold" if name == "dual" else None)
    references = results.references_unseen if unseen else results.references
    if references:
        table.add_section()
    for name, entry in references.items():
        measures = (_cell(entry.get(key)) for key in ("bottom_decile", "minority_accuracy"))
        table.add_row(wording.name(name), _cell(entry.get("accuracy")), "", *measures, style="dim")
    return table


def _answer(answer: Answer, lines: int) -> list[Text | Table | Padding]:
    head = Text.assemble((f"\n{answer.question} ", _COLOURS[answer.tone]), answer.headline)
    body = (
        Padding(Text(f"- {text[:1].upper()}{text[1:]}"), (0, 0, 0, 2)) for text in answer.sentences[:lines]
    )
    return [head, *body]


def _cell(fraction: float | None) -> str:
    return wording.percent(fraction).removesuffix("%")


def _cells(name: str, arm: ArmResult) -> tuple[str, ...]:
    return (
        wording.name(name),
        _cell(arm.accuracy),
        wording.interval(arm.ci95).replace(" to ", "\N{EN DASH}"),
        _cell(arm.bottom_decile),
        _cell(arm.minority_accuracy),
        _cell(arm.harmed_share),
        _cell(arm.harmed_share_significant),
        _cell(arm.values_worst_user),
        "none" if arm.epsilon_record is None else f"{arm.epsilon_record:.2f}",
    )
