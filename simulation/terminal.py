"""What a person sees of a simulation in the terminal: steps, a live progress bar, the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from simulation.run import Watcher

if TYPE_CHECKING:
    from fl_server.progress import Progress
    from simulation.report import ReportFiles
    from simulation.results import Results


@contextlib.contextmanager
def watcher(console: Console | None = None) -> Iterator[Watcher]:
    """A watcher that prints steps and, on a terminal, keeps a bar; elsewhere one line an arm."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        display = _Display(console, bars)
        yield Watcher(display.step, display.progress)


def show(results: Results, files: ReportFiles) -> None:
    """Print the report's first lines and where it is."""
    from simulation.summary import print_summary

    print_summary(results)
    Console(soft_wrap=True).print(f"\nreport: {files.html.resolve()}", highlight=False)


def show_profile(out: Path, results: Results) -> None:
    """Print where the time of the run in ``out`` went, and leave it in a file there."""
    from simulation.profiling import PROFILE_FILE, write_profile

    seconds = {name: value for name, value in results.seconds.items() if isinstance(value, float)}
    Console().print(write_profile(out, seconds))
    Console(soft_wrap=True).print(f"profile: {(out / PROFILE_FILE).resolve()}", highlight=False)


def describe(progress: Progress) -> tuple[str, str]:
    """An arm's label and a note on its last round."""
    label = f"arm {progress.arm} ({progress.arm_index + 1} of {progress.arms})"
    if progress.phase == "personalising":
        return label, f"personal phase: {progress.replies} nodes"
    rejected = f", {progress.rejected} rejected" if progress.rejected else ""
    return label, f"{progress.replies} nodes{rejected}" if progress.replies else progress.phase


class _Display:
    """The bar's state: a task for the arm that is running."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console, self._bars = console, bars
        self._arm, self._task = "", TaskID(-1)

    def step(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False)

    def progress(self, progress: Progress) -> None:
        if not progress.arm:
            return
        label, note = describe(progress)
        if progress.arm != self._arm:
            self._close()
            self._arm, self._task = progress.arm, self._bars.add_task(label, total=None, note=note)
            if not self._console.is_terminal:
                self._console.print(label, highlight=False)
        self._bars.update(self._task, completed=progress.round, total=progress.rounds or None, note=note)
        if progress.phase in ("done", "failed"):
            self._close()

    def _close(self) -> None:
        if self._arm:
            self._bars.remove_task(self._task)
            self._arm = ""
