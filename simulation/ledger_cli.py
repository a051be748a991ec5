"""The command ``duet ledger``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from simulation.ledgers import ViewCost

app = typer.Typer(help="What was spent of the privacy budgets.", no_args_is_help=True)


@app.callback()
def options() -> None:
    """What was spent of the privacy budgets."""


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="File of a ledger, or folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what was spent in each view: PATH is the file of a ledger, or the folder of a run.

    Of the ledgers of several nodes, the worst user's epsilon.  An epsilon says nothing without its
    unit: a record is one vote or pair of one user, a user all that he ever gave.
    """
    from simulation.ledgers import view_costs

    rows = view_costs(path)
    if as_json:
        typer.echo(json.dumps([row.to_mapping() for row in rows], indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console().print(_table(rows))


def _table(rows: list[ViewCost]) -> Table:
    """One row an arm and view, the epsilons with what is left of their budgets."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "who sees it", "one unit", "δ", "ε ever", "left", "in days", "ε there", "left"):
        table.add_column(column, justify="left" if column in ("arm", "who sees it", "one unit") else "right")
    for column in ("charged", "released", "pending"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.arm,
            row.view,
            f"{row.unit} ({row.relation})",
            f"{row.delta:g}",
            *(_number(value) for value in (row.epsilon, row.remaining)),
            "-" if row.window_days is None else f"{row.window_days:g}",
            *(_number(value) for value in (row.window_epsilon, row.window_remaining)),
            *(str(count) for count in (row.charges, row.releases, row.pending)),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
