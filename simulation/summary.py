"""The report's first lines and its table of arms in the terminal."""

from __future__ import annotations

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
    "accuracy",
    "95% interval",
    "bottom\ndecile",
    "against\nmajority",
    "worse\n(significantly)",
    "values\n(worst user)",
    "ε (one\nrecord)",
)


def print_summary(results: Results, console: Console | None = None) -> None:
    """Print the first lines and the tables of arms to ``console`` (default: standard output)."""
    (console or Console()).print(summary(results))


def summary(results: Results) -> Group:
    """The first lines and the tables as one rich renderable."""
    first = findings(results)
    parts: list[Text | Table | Padding] = [Text(first.headline, style="bold")]
    for answer in first.answers:
        parts += _answer(answer)
    parts += [Text(""), arms_table(results)]
    if results.arms_unseen:
        parts.append(arms_table(results, unseen=True))
    parts += [Text(f"Mind: {text}", style="dim") for text in first.cautions]
    return Group(*parts)


def arms_table(results: Results, unseen: bool = False) -> Table:
    """One row an arm, then the references."""
    title = "texts in nobody's training (unseen)" if unseen else "texts that others' training contains (seen)"
    table = Table(title=f"Test pairs ordered as the user does: {title}", title_justify="left", title_style="")
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for name, arm in results.arm_items(unseen):
        table.add_row(*_cells(name, arm), style="bold" if name == "dual" else None)
    references = results.references_unseen if unseen else results.references
    if references:
        table.add_section()
    for name, entry in references.items():
        measures = (wording.percent(entry.get(key)) for key in ("bottom_decile", "minority_accuracy"))
        table.add_row(wording.name(name), wording.percent(entry.get("accuracy")), "", *measures, style="dim")
    return table


def _answer(answer: Answer) -> list[Text | Table | Padding]:
    head = Text.assemble((f"\n{answer.question} ", _COLOURS[answer.tone]), answer.headline)
    body = (Padding(Text(f"- {text[:1].upper()}{text[1:]}"), (0, 0, 0, 2)) for text in answer.sentences)
    return [head, *body]


def _cells(name: str, arm: ArmResult) -> tuple[str, ...]:
    def beside(first: float | None, second: float | None) -> str:
        return wording.percent(first) + ("" if second is None else f" ({wording.percent(second)})")

    return (
        wording.name(name),
        wording.percent(arm.accuracy),
        wording.interval(arm.ci95),
        wording.percent(arm.bottom_decile),
        wording.percent(arm.minority_accuracy),
        beside(arm.harmed_share, arm.harmed_share_significant),
        beside(arm.values_accuracy, arm.values_worst_user),
        "none" if arm.epsilon_record is None else f"{arm.epsilon_record:.2f}",
    )
