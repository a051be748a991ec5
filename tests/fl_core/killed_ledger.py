"""Processes that die by SIGKILL at any line of the ledger's path, and what they leave behind.

Run as a script, so that the processes it forks hold nothing but what a ledger needs (no torch):
``python -m tests.fl_core.killed_ledger {client|server} LINES RANDOM FOLDER``.  It kills one process at each
of LINES lines, evenly spread over all that a round on a new ledger executes, and RANDOM ones at random
times on one ledger that grows; after each it checks the file, has the round asked again twice, and
checks again.  It prints a JSON object of what it counted.

The witness of what was really done is a log of its own, appended to before noise is drawn
("trained") and after the bytes are handed over ("sent").
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fl_core.atomic import write_bytes
from fl_core.ledger import Ledger, Round, Ticket
from fl_core.privacy import DpEvent, participations
from fl_core.spending import Charge

WATCHED = (
    "ledger.py",
    "ledger_file.py",
    "ledger_rows.py",
    "chain.py",
    "atomic.py",
    "spending.py",
    Path(__file__).name,
)
USERS = np.arange(3)


class Witness:
    """Lines that survive their writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, *words: object) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write((" ".join(map(str, words)) + "\n").encode())

    def read(self, kind: str) -> list[list[str]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [line.split()[1:] for line in lines if line.split()[0] == kind]


def client_round(folder: Path, server_round: int) -> None:
    """A device's round: charge, train with fresh noise, write the reply, mark, send."""
    witness, everyone = Witness(folder / "witness"), np.ones(len(USERS), dtype=bool)

    def train(ticket: Ticket) -> bytes:
        noise = os.urandom(16).hex()
        witness.note("trained", server_round, noise)
        return noise.encode()

    charges = [Charge(DpEvent(1.0, 500.0, 1, 1.0, adapter), everyone) for adapter in ("shared", "personal")]
    sent = Ledger(folder / "l.sqlite", USERS).once(
        Round("run", "dual_dp", server_round), charges, folder / "reply", train, delta=1e-5, same_noise=False
    )
    witness.note("sent", server_round, sent.decode())


def server_round(folder: Path, number: int) -> None:
    """A server's round: charge, add noise, put the checkpoint on the disk, mark."""
    witness, ledger = Witness(folder / "witness"), Ledger(folder / "l.sqlite", USERS[:1])
    key, checkpoint = Round("run", "dual", number), folder / f"checkpoint-{number}"
    if not ledger.released(key):
        charge = [Charge(participations(500.0, 1, 1.0), np.ones(1, dtype=bool))]
        ticket = ledger.charge(key, charge, delta=1e-6, same_noise=False)
        noise = os.urandom(16).hex()
        witness.note("trained", number, noise)
        write_bytes(checkpoint, noise.encode())
        ledger.release(ticket, checkpoint.name, hashlib.sha256(noise.encode()).hexdigest())
    witness.note("sent", number, checkpoint.read_text())


def careless_round(folder: Path, number: int) -> None:
    """Wrong on purpose, to see that the checks notice: noise first, charge afterwards."""
    witness, ledger = Witness(folder / "witness"), Ledger(folder / "l.sqlite", USERS[:1])
    witness.note("trained", number, os.urandom(16).hex())
    charge = [Charge(participations(500.0, 1, 1.0), np.ones(1, dtype=bool))]
    ledger.charge(Round("run", "dual", number), charge, delta=1e-6, same_noise=False)


ROUNDS: dict[str, Callable[[Path, int], None]] = {
    "client": client_round,
    "server": server_round,
    "careless": careless_round,
}


Counts = list[tuple[int, int, int]]
"""(charged, trained, sent) of each ledger."""


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that does ``work`` and leaves."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)


def traced(work: Callable[[], None], at_line: int) -> int:
    """Do ``work`` but die at the ``at_line``-th watched line (0: never); how many there were."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if Path(frame.f_code.co_filename).name not in WATCHED:
            return None
        if event == "line":
            lines += 1
            if lines == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)
    return lines


def check(folder: Path, kills: int) -> None:
    """What must hold after any number of deaths."""
    entries = Ledger(folder / "l.sqlite").entries()  # also makes the tables, where it died before them
    connection = sqlite3.connect(folder / "l.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = connection.execute("SELECT round, attempt, adapter, state, sha256 FROM ledger").fetchall()
    connection.close()
    assert len(entries) == len(rows)
    witness = Witness(folder / "witness")
    trained, sent = witness.read("trained"), witness.read("sent")
    for adapter in {row[2] for row in rows}:
        charged: dict[int, int] = {}
        for row in rows:
            if row[2] == adapter:
                charged[row[0]] = charged.get(row[0], 0) + 1
        made: dict[int, int] = {}
        for number, _ in trained:
            made[int(number)] = made.get(int(number), 0) + 1
        assert all(charged.get(number, 0) >= times for number, times in made.items()), "under-charged"
        assert sum(charged.values()) - len(trained) <= kills, "more than one over-charge a kill"
        released = {row[0]: row[4] for row in rows if row[2] == adapter and row[3] == "released"}
        for number, data in sent:
            assert hashlib.sha256(data.encode()).hexdigest() == released[int(number)], (
                "sent before it was marked"
            )
    by_round: dict[str, set[str]] = {}
    for number, data in sent:
        by_round.setdefault(number, set()).add(data)
    assert all(len(each) == 1 for each in by_round.values()), "a retry sent other bytes"


def ends(work: Callable[[], object]) -> bool:
    """Whether a child that did ``work`` was killed; it may fail in no other way."""
    _, status = os.waitpid(forked(work), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def recover(kind: str, folder: Path, number: int, kills: int) -> tuple[int, int, int]:
    """Check; have the round asked again, after the crash and after its release; check.

    Returns how many times a round was charged, trained and sent in ``folder``.
    """
    if (folder / "l.sqlite").exists():
        check(folder, kills)
    for _ in range(2):
        assert not ends(lambda: ROUNDS[kind](folder, number))
    check(folder, kills)
    entries, witness = Ledger(folder / "l.sqlite").entries(), Witness(folder / "witness")
    adapters = len({entry.event.adapter for entry in entries})
    return len(entries) // adapters, len(witness.read("trained")), len(witness.read("sent"))


def at_every_line(kind: str, lines: int, folder: Path) -> tuple[int, Counts]:
    """Kills and counts of deaths at ``lines`` lines of a round, each on a ledger of its own."""
    told = folder / "lines"
    (folder / "whole").mkdir()
    assert not ends(lambda: told.write_text(str(traced(lambda: ROUNDS[kind](folder / "whole", 1), 0))))
    total, kills, counts = int(told.read_text()), 0, []
    for point in range(lines):
        own, line = folder / f"line-{point}", 1 + point * total // lines
        own.mkdir()
        killed = ends(functools.partial(traced, functools.partial(ROUNDS[kind], own, 1), line))
        kills += killed
        counts.append(recover(kind, own, 1, int(killed)))
    return kills, counts


def at_random_times(kind: str, times: int, folder: Path) -> tuple[int, Counts]:
    """The same at random times, on one ledger that is never new."""
    generator, number, counts = random.Random(0), 1, (0, 0, 0)
    folder.mkdir()

    def many(first: int) -> None:
        for each in itertools.count(first):
            ROUNDS[kind](folder, each)

    for kill in range(1, times + 1):
        child = forked(functools.partial(many, number))
        time.sleep(generator.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached = Ledger(folder / "l.sqlite").entries() if (folder / "l.sqlite").exists() else []
        number = max([entry.server_round for entry in reached], default=number)
        counts = recover(kind, folder, number, kill)
        number += 1
    return times, [counts]


def main(kind: str, lines: int, at_random: int, folder: Path) -> None:
    """See the module."""
    started = time.monotonic()
    parts = [at_every_line(kind, lines, folder), at_random_times(kind, at_random, folder / "random")]
    kills = sum(part[0] for part in parts)
    charged, trained, sent = (sum(row[i] for _, rows in parts for row in rows) for i in range(3))
    found = {"kills": kills, "charged": charged, "trained": trained, "sent": sent}
    print(json.dumps({**found, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
