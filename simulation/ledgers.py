"""What ledgers say was spent: of one file, or of all nodes and the server of a run.

A simulation may look into every node's ledger; on a device its owner looks into his own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fl_client.store import PersonalState
from fl_core.errors import DataError, PrivacyError
from fl_core.ledger import FOLDER, Ledger
from fl_core.privacy import RELATIONS, Adapter, View
from fl_core.spending import SECONDS_A_DAY, Budget, Entry, Units, spendings, spent, steps_charged, steps_made


@dataclass(frozen=True)
class ViewCost:
    """What one arm has spent in one view, and what is left.

    ``epsilon`` is the largest of any unit at ``delta``, ever; ``window_epsilon`` that of the last
    ``window_days`` (None where no budget has a window).  ``remaining``, ``window_remaining``: of the
    budgets, None where there is none.  ``pending``: charges without a release.
    """

    arm: str
    view: View
    unit: str
    relation: str
    delta: float
    epsilon: float
    remaining: float | None
    window_days: float | None
    window_epsilon: float | None
    window_remaining: float | None
    charges: int
    releases: int
    pending: int

    def to_mapping(self) -> dict[str, Any]:
        """For JSON; null in place of an epsilon without bound, as JSON has no infinity."""
        values = asdict(self)
        return {key: None if value == np.inf else value for key, value in values.items()}


@dataclass(frozen=True)
class ArmSpending:
    """What the worst record of an arm's users has spent, over all nodes' ledgers.

    ``training``: epsilon over both adapters of records that train, ``server``: what uploads alone
    show of them, ``fusion``: of records that are held back; ``shared_steps``, ``personal_steps``: the
    most that a record took part in; ``charges`` and ``releases`` count rows.
    """

    training: float
    server: float
    fusion: float
    shared_steps: int
    personal_steps: int
    charges: int
    releases: int


def ledger_files(path: Path) -> list[Path]:
    """``path`` itself, or the ledgers in the run's folder ``path``.

    Raises ``DataError`` where there is none.
    """
    found = [path] if path.is_file() else sorted((path / FOLDER).glob("*.sqlite"))
    if not found:
        raise DataError(
            f"{str(path)!r}: holds no ledger; give the file of one, or the folder of a run with a private arm"
        )
    return found


def _of_run(out: Path) -> list[Path]:
    """The nodes' ledgers of a run; none where nothing was charged."""
    return sorted((out / FOLDER).glob("node-*.sqlite"))


def view_costs(path: Path, now: float | None = None) -> list[ViewCost]:
    """One row for each arm and view that something was charged in; of several ledgers the worst.

    ``now``: seconds since 1970 at which windows end; None: the present.
    """
    end = time.time() if now is None else now
    rows: dict[tuple[str, View], list[ViewCost]] = {}
    for file in ledger_files(path):
        ledger = Ledger(file)
        entries, budgets = ledger.entries(), ledger.stored_budgets()
        for arm in dict.fromkeys(entry.arm for entry in entries):
            own = [entry for entry in entries if entry.arm == arm]
            units = ledger.units()
            for view in get_args(View):
                if row := _view_cost(own, units, budgets, arm, view, end):
                    rows.setdefault((arm, view), []).append(row)
    return [_worst(group) for group in rows.values()]


def _view_cost(
    entries: Sequence[Entry], units: Units, budgets: Sequence[Budget], arm: str, view: View, now: float
) -> ViewCost | None:
    seen = [entry for entry in entries if _shows(view, entry)]
    if not seen:
        return None
    bounds = [budget for budget in budgets if budget.view == view and budget.arm in ("", arm)]
    delta = min([entry.delta for entry in seen] + [budget.delta for budget in bounds])
    epsilon = spent(entries, units, view, delta)
    lifetime = [budget.epsilon for budget in bounds if not budget.days]
    window = min((budget for budget in bounds if budget.days), key=lambda budget: budget.days, default=None)
    recent = spent(entries, units, view, delta, now - window.days * SECONDS_A_DAY) if window else None
    unit, releases = seen[0].event.unit, sum(entry.state == "released" for entry in seen)
    return ViewCost(
        arm=arm,
        view=view,
        unit=unit,
        relation=RELATIONS[unit],
        delta=delta,
        epsilon=epsilon,
        remaining=max(0.0, min(lifetime) - epsilon) if lifetime else None,
        window_days=window.days if window else None,
        window_epsilon=recent,
        window_remaining=max(0.0, window.epsilon - recent) if window and recent is not None else None,
        charges=len(seen),
        releases=releases,
        pending=len(seen) - releases,
    )


def _shows(view: View, entry: Entry) -> bool:
    shown = ("server", "personal") if view == "personal" else (view,)
    return entry.event.view in shown


def _worst(rows: Sequence[ViewCost]) -> ViewCost:
    """The row with the largest epsilon, with the charges of all."""
    worst = max(rows, key=lambda row: row.epsilon)
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("charges", "releases", "pending")}
    return ViewCost(**{**asdict(worst), **counts})


def arm_spending(out: Path, arm: str, delta: float) -> ArmSpending:
    """What the ledgers in the run's folder ``out`` say of ``arm``."""
    found = []
    for file in _of_run(out):
        ledger = Ledger(file)
        entries, units = ledger.entries(arm=arm), ledger.units()
        if not entries:
            continue
        trained, held_back = spendings(entries, units, "personal")
        found.append(
            ArmSpending(
                training=trained.worst(delta),
                server=spent(entries, units, "server", delta),
                fusion=held_back.worst(delta),
                shared_steps=int(steps_made(entries, units, "shared").max()),
                personal_steps=int(steps_made(entries, units, "personal").max()),
                charges=len(entries),
                releases=sum(entry.state == "released" for entry in entries),
            )
        )
    most = {name: max((getattr(one, name) for one in found), default=0) for name in _LARGEST}
    total = {name: sum(getattr(one, name) for one in found) for name in ("charges", "releases")}
    return ArmSpending(**most, **total)


def released_epsilon(out: Path, arm: str, delta: float) -> float:
    """What an arm's noised releases cost the user asked most often, by the server's ledger.

    Raises ``PrivacyError`` where rounds were applied that it did not charge.
    """
    path = out / FOLDER / "server.sqlite"
    ledger = Ledger(path) if path.exists() else None
    entries = ledger.entries(arm=arm) if ledger else []
    rounds = json.loads((out / "arms" / arm / "rounds.json").read_text(encoding="utf-8"))["rounds"]
    applied = {row["round"] for row in rounds if row["applied"]}
    if missing := applied - {entry.server_round for entry in entries}:
        raise PrivacyError(
            f"arm {arm!r}: round {min(missing)} was released, but {str(path)!r} did not charge it; this run "
            "has no epsilon to state"
        )
    return spent(entries, ledger.units(), "public", delta) if ledger else 0.0


_LARGEST = ("training", "server", "fusion", "shared_steps", "personal_steps")


def check_charged(out: Path, arm: str, state: PersonalState, uploads: bool) -> None:
    """Every user's steps in the store were charged in his node's ledger; ``uploads``: those too.

    More may be charged than was made, by a process that died, but never less.

    Raises ``PrivacyError`` naming a user who made more steps than were charged.
    """
    made: dict[Adapter, Any] = {"personal": state.personal_steps}
    if uploads:
        made["shared"] = state.shared_steps
    charged = {adapter: np.zeros(int(state.user.max(initial=-1)) + 1, dtype=np.int64) for adapter in made}
    for file in _of_run(out):
        ledger = Ledger(file)
        users, entries = ledger.users(), ledger.entries(arm=arm)
        for adapter, counts in charged.items():
            known = users < len(counts)
            counts[users[known]] += steps_charged(entries, len(users), adapter)[known]
    for adapter, steps in made.items():
        short = steps - charged[adapter][state.user]
        if (short > 0).any():
            row = int(np.argmax(short))
            raise PrivacyError(
                f"arm {arm!r}: user {state.user[row]} made {steps[row]} {adapter} steps, but the ledgers in "
                f"{str(out / FOLDER)!r} charged {steps[row] - short[row]}; this run has no epsilon to state"
            )
