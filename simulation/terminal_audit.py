"""``duet audit`` in a terminal: progress, a table of paths, and the verdict; or JSON alone."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_core.config import RunConfig
from simulation.attacks import Attacks
from simulation.audit import AUDIT_FILE, PICTURE_FILE, Audit, audit


def run(
    config: RunConfig, claim: float, canaries: int, out: Path, as_json: bool, with_attacks: bool
) -> Audit:
    """Audit, write the files into ``out``, show the result and return it.

    With ``as_json`` standard output holds one JSON object and nothing else.
    """
    errors = Console(stderr=True)
    with _quiet() if as_json else contextlib.nullcontext():
        found = audit(
            config, claim, canaries, lambda sentence: errors.print(sentence, style="dim"), with_attacks
        )
        found.write(out)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found, Console())
        print(f"{out / AUDIT_FILE}, {out / PICTURE_FILE}")
    return found


def show(found: Audit, console: Console) -> None:
    """The table of paths and one sentence."""
    table = Table("path", "at least", "claimed", "moments and exact checks", "verdict", box=None)
    for name, path in found.paths.items():
        gate = "-" if path.observed is None else "pass" if path.gate else "FAIL: " + ", ".join(path.caught())
        verdict = "pass" if path.gate and path.within_claim else "FAIL"
        table.add_row(name, f"{path.bound.epsilon:.3f}", f"{path.claimed:.3f}", gate, verdict)
    console.print(table)
    if found.attacks is not None:
        _show_attacks(found.attacks, console)
    unit = f"epsilon of one record (add or remove) at delta {found.delta:g}, seed {found.seed}"
    sentence = "No fault was found" if found.passed else "A fault was found: the claim does not hold"
    console.print(f"{sentence}.  {unit}.  An audit can refute a claim; it cannot prove one.", highlight=False)


def _show_attacks(found: Attacks, console: Console) -> None:
    """What each attack reached: 0.5 and 1% are guessing, and the bits that a rank has by chance."""
    table = Table("membership inference", "AUC", "95%", "hits at 1%", "95%", box=None)
    for name, result in found.membership.items():
        low, high = result.auc_interval
        few, many = result.tpr_interval
        area, hits = f"{result.auc:.3f}", f"{result.tpr:.1%}"
        table.add_row(
            Text(name, no_wrap=True), area, f"{low:.3f} to {high:.3f}", hits, f"{few:.1%} to {many:.1%}"
        )
    console.print(table)
    for name, secret in found.exposure.items():
        bits = f"{secret.bits:.2f} of {secret.most:.0f} bits (by chance {secret.by_chance:.2f})"
        console.print(f"exposure of secrets, {name}: {bits}", highlight=False)
    if not found.control:
        console.print("The attacks fail without privacy as well: they show nothing here.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever libraries print goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
