"""The privacy ledger of one device, one simulated node, or one server: charge before release.

One SQLite file.  The order, which ``Ledger.once`` keeps for whoever has bytes to send:

1. *charge* all that the work may cost at most, and commit;
2. *work*: train, with noise;
3. *write* the artefact (the bytes to be sent) and rename it into place;
4. *mark* the charge as released.

Whatever kills the process, nothing is released that was not charged.  A round that was released
gives its bytes again and is charged once.  A process that died between 1 and 4 has a charge
without a release: working again with fresh noise is another release of the same data and so
another charge (a second attempt); only where the same noise comes again by construction
(``same_noise``: a simulation's, keyed by user, round and step) it is not.  Nothing is ever
refunded: rows cannot be deleted or changed, also not by deleting data.

Who took part is one bitmap a row, not a row a user.  Rows are chained and counted
(``fl_core.chain``), so that an old copy of the file is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_core.atomic import locked, write_bytes
from fl_core.chain import EMPTY, Head, read_counter, write_counter
from fl_core.errors import BudgetError, PrivacyError
from fl_core.ledger_rows import (
    EVENT_COLUMNS,
    RELEASE_COLUMNS,
    SCHEMA,
    entry_of,
    plain,
    released_entry,
    row_of,
)
from fl_core.privacy import Adapter
from fl_core.spending import Bools, Budget, Charge, Entry, Ints, Units, permitted, steps_made

FOLDER = "ledger"
"""Under a run's folder: the ledgers of its nodes and of its server."""

LOCK_SECONDS = 120.0
"""How long one process waits for another that is at the same ledger."""


@dataclass(frozen=True)
class Round:
    """What is charged once: a round of an arm of a run."""

    run: str
    arm: str
    server_round: int


@dataclass(frozen=True)
class Ticket:
    """What was charged: the entries' ``numbers``, the ``users`` who may take part in each charge, and
    why others may not."""

    numbers: tuple[int, ...]
    users: tuple[Bools, ...]
    refusals: tuple[str, ...] = ()


class Ledger:
    """The ledger in the file ``path``, of ``users`` (indices in the population; a device has one).

    ``budgets`` bound every charge.  ``counter``: the second file against old copies, by default
    beside the first.  ``users`` = None: the ledger is there already.  Safe for several processes.

    All methods raise ``PrivacyError`` where the file is damaged, older than its counter, or of
    other users, and ``RunError`` where another process keeps it locked.
    """

    def __init__(
        self,
        path: Path,
        users: Ints | None = None,
        budgets: Sequence[Budget] = (),
        counter: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.budgets, self.clock = path, tuple(budgets), clock
        self.counter = counter or path.with_name(f"{path.name}.counter")
        self._given, self._head = users, EMPTY
        self._users, self._entries = np.zeros(0, dtype=np.int64), list[Entry]()

    # Reading -----------------------------------------------------------------------------

    def entries(self, run: str | None = None, arm: str | None = None) -> list[Entry]:
        """All charges in their order, of one run or one arm where that is named."""
        with self._open():
            found = list(self._entries)
        return [entry for entry in found if run in (None, entry.run) and arm in (None, entry.arm)]

    def users(self) -> Ints:
        """[U] whom the ledger is about, in the order of the bitmaps."""
        with self._open():
            return self._users

    def stored_budgets(self) -> list[Budget]:
        """The budgets that the last writer had, without their plans."""
        with self._open() as connection:
            return [Budget(**values) for values in json.loads(_meta(connection, "budgets") or "[]")]

    def released(self, key: Round) -> tuple[Entry, ...]:
        """The round's released entries; empty where it was not released."""
        with self._open():
            return tuple(entry for entry in self._of(key) if entry.state == "released")

    def units(self, parts: Sequence[int] = ()) -> Units:
        """The units that costs are counted for: of admitted records, else of everyone in all parts."""
        with self._open() as connection:
            return self._units(connection, parts)

    # Charging and releasing --------------------------------------------------------------

    def charge(self, key: Round, charges: Sequence[Charge], *, delta: float, same_noise: bool) -> Ticket:
        """Charge a round, at most one charge an adapter, and commit; see the module for the order.

        The ticket's users are those of each charge whom all budgets let take part; the others
        were not charged.  ``same_noise``: an earlier attempt's charge pays for this one too.

        Raises ``BudgetError`` where nobody may take part in anything, and ``PrivacyError`` where an
        earlier attempt with the same noise was another event.
        """
        with self._open() as connection:
            with _transaction(connection):
                ticket = self._charge(connection, key, charges, delta, same_noise)
            self._count()
        return ticket

    def release(self, ticket: Ticket, artefact: str, sha256: str) -> None:
        """Mark what ``ticket`` charged as released in ``artefact``, which must be on the disk.

        The counter waits for the next charge: a copy without this mark would only charge again.
        """
        with self._open() as connection, _transaction(connection):
            for number in ticket.numbers:
                if self._entries[number - 1].state == "released":
                    continue
                values = (number, artefact, sha256, self._now())
                self._insert(connection, "release", RELEASE_COLUMNS, values)
                self._entries[number - 1] = released_entry(self._entries[number - 1], values)

    def once(
        self,
        key: Round,
        charges: Sequence[Charge],
        artefact: Path,
        work: Callable[[Ticket], bytes],
        *,
        delta: float,
        same_noise: bool,
    ) -> bytes:
        """The round's bytes: those that were released, else charge, ``work``, write, mark.

        Raises as ``charge`` does, and ``PrivacyError`` where the released bytes are no longer there.
        """
        if done := self.released(key):
            return self._bytes(artefact, done[-1])
        ticket = self.charge(key, charges, delta=delta, same_noise=same_noise)
        data = work(ticket)
        write_bytes(artefact, data)
        self.release(ticket, artefact.name, hashlib.sha256(data).hexdigest())
        return data

    def _bytes(self, artefact: Path, entry: Entry) -> bytes:
        data = artefact.read_bytes() if artefact.exists() else b""
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PrivacyError(
                f"ledger {self.path.name}: round {entry.server_round} of arm {entry.arm!r} was released, "
                f"but {artefact.name!r} is gone or was replaced; it is not trained "
                "again, go on with the next round"
            )
        return data

    # Records -----------------------------------------------------------------------------

    def admit(self, records: Sequence[str], users: Sequence[int], parts: Sequence[int]) -> None:
        """Enter new records by opaque ids; each takes part from the next entry on, if its user does.

        Those that are known keep what they had: a record that was deleted and comes back is not
        new.  ``users`` are rows of the ledger's users.  Once a record was admitted, all must be.
        """
        with self._open() as connection, _transaction(connection):
            rows = [
                (record, int(user), int(part), len(self._entries))
                for record, user, part in zip(records, users, parts, strict=True)
            ]
            connection.executemany("INSERT OR IGNORE INTO record VALUES (?, ?, ?, ?)", rows)

    def active(self, records: Sequence[str], adapter: Adapter, steps: int, most_steps: int) -> Bools:
        """[N] which admitted records may take part in ``steps`` more on ``adapter``; the rest is retired.

        Raises ``PrivacyError`` on a record that was not admitted.
        """
        with self._open() as connection:
            known = {
                row[0]: row[1:] for row in connection.execute("SELECT id, user, part, since FROM record")
            }
            if unknown := [record for record in records if record not in known]:
                raise PrivacyError(f"record {unknown[0]!r}: is not in the ledger; admit it before it trains")
            columns = np.array([known[record] for record in records], dtype=np.int64).reshape(-1, 3)
            made = steps_made(self._entries, Units(*columns.T), adapter)
        return np.asarray(made + steps <= most_steps)

    def _units(self, connection: sqlite3.Connection, parts: Sequence[int]) -> Units:
        rows = connection.execute("SELECT DISTINCT user, part, since FROM record").fetchall()
        if rows:
            return Units(*np.array(rows, dtype=np.int64).T)
        named = {entry.charge.part for entry in self._entries} | set(parts)
        return Units.of_everyone(len(self._users), named)

    # One charge --------------------------------------------------------------------------

    def _charge(
        self,
        connection: sqlite3.Connection,
        key: Round,
        charges: Sequence[Charge],
        delta: float,
        same_noise: bool,
    ) -> Ticket:
        numbers: list[int] = []
        taken: list[Bools] = []
        refusals: list[str] = []
        for charge in charges:
            users = self._check(charge)
            earlier = [e for e in self._of(key) if e.event.adapter == charge.event.adapter]
            if same_noise and earlier:
                number, users = self._again(earlier[-1], charge)
                numbers.append(number)
            elif users.any():
                following = self._following(key, charge, len(earlier), delta)
                units = self._units(connection, (charge.part,))
                now = following.charged_at
                users, why = permitted(following, self._entries, units, self.budgets, now)
                refusals += why
                if users.any():
                    numbers.append(self._append(connection, following, users))
            taken.append(users)
        if refusals and not numbers:
            raise BudgetError(
                f"ledger {self.path.name}, arm {key.arm!r}, round {key.server_round}: "
                f"{'; '.join(refusals)}; nothing is trained or sent.  "
                "Wait for the window to pass, or raise the budget"
            )
        return Ticket(tuple(numbers), tuple(taken), tuple(refusals))

    def _check(self, charge: Charge) -> Bools:
        if charge.users.shape != self._users.shape:
            raise PrivacyError(
                f"Charge.users: {charge.users.shape[0]} users, but ledger {self.path.name} is of "
                f"{len(self._users)}"
            )
        return charge.users

    def _again(self, earlier: Entry, charge: Charge) -> tuple[int, Bools]:
        """An earlier attempt that had the same noise, if it was the same event."""
        if (earlier.event, earlier.charge.part) != (charge.event, charge.part):
            raise PrivacyError(
                f"ledger {self.path.name}: round {earlier.server_round} of arm {earlier.arm!r} was charged "
                f"as {earlier.event}, not as {charge.event}; the same noise must not serve two mechanisms"
            )
        return earlier.number, earlier.charge.users

    def _following(self, key: Round, charge: Charge, attempt: int, delta: float) -> Entry:
        number = len(self._entries) + 1
        return Entry(number, key.run, key.arm, key.server_round, attempt, charge, delta, self._now())

    def _append(self, connection: sqlite3.Connection, entry: Entry, users: Bools) -> int:
        entry = replace(entry, charge=replace(entry.charge, users=users))
        self._insert(connection, "event", EVENT_COLUMNS, row_of(entry))
        self._entries.append(entry)
        return entry.number

    def _insert(
        self, connection: sqlite3.Connection, table: str, columns: str, values: Sequence[Any]
    ) -> None:
        """One more row of the chain."""
        self._head = self._head.then([plain(value) for value in values])
        marks = ", ".join("?" * (len(values) + 2))
        row = (*values, self._head.number, self._head.digest)
        connection.execute(f"INSERT INTO {table} ({columns}, number, digest) VALUES ({marks})", row)

    def _of(self, key: Round) -> list[Entry]:
        return [e for e in self._entries if Round(e.run, e.arm, e.server_round) == key]

    def _now(self) -> float:
        """The time, which never runs backwards from what the ledger has seen."""
        return max([self.clock(), *(entry.charged_at for entry in self._entries[-1:])])

    # The file ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, locked, with all its rows read and checked.

        Opened anew for each call: processes come and go, and with a lock of our own around an
        exclusive connection SQLite needs no memory shared between them, which file systems of a
        cluster lack.
        """
        if self._given is None and not self.path.exists():
            raise PrivacyError(f"ledger {str(self.path)!r}: there is none; give a file that `duet` wrote")
        with locked(self.path.with_name(f"{self.path.name}.lock"), LOCK_SECONDS):
            try:
                connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                with contextlib.closing(connection):
                    self._prepare(connection)
                    self._read(connection)
                    yield connection
            except (sqlite3.Error, json.JSONDecodeError) as error:
                self._forget()
                raise PrivacyError(f"ledger {str(self.path)!r} cannot be used ({error})") from error
            except BaseException:
                self._forget()  # what was read may hold rows that were not committed
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name='ledger'").fetchone()[0]:
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        stored = _meta(connection, "users")
        if stored is None and self._given is not None:
            _set_meta(connection, "users", json.dumps(self._given.tolist()))
        elif self._given is not None and json.loads(stored or "[]") != self._given.tolist():
            raise PrivacyError(
                f"ledger {str(self.path)!r} is of other users; keep the number of nodes of a run, or give it "
                "a new output folder"
            )
        if self.budgets:
            values = [{k: v for k, v in asdict(b).items() if k != "plan"} for b in self.budgets]
            if _meta(connection, "budgets") != json.dumps(values):
                _set_meta(connection, "budgets", json.dumps(values))
        self._users = np.array(json.loads(_meta(connection, "users") or "[]"), dtype=np.int64)

    def _read(self, connection: sqlite3.Connection) -> None:
        """Read and check the rows after those that are known, then the counter.

        Raises ``PrivacyError`` where the chain is broken or rows are missing at its end.
        """
        rows = [
            (*row[-2:], table, row[:-2])
            for table, columns in (("event", EVENT_COLUMNS), ("release", RELEASE_COLUMNS))
            for row in connection.execute(
                f"SELECT {columns}, number, digest FROM {table} WHERE number > ?", (self._head.number,)
            )
        ]
        counter, digests = read_counter(self.counter), {self._head.number: self._head.digest}
        for number, digest, table, values in sorted(rows, key=lambda row: int(row[0])):
            head = self._head.then([plain(value) for value in values])
            if head != Head(number, digest):
                raise PrivacyError(
                    f"ledger {str(self.path)!r}: row {number} does not follow from row {self._head.number}; "
                    "the file was changed or is damaged.  Nothing is trained with it; use a new folder"
                )
            self._head, digests[number] = head, digest
            if table == "event":
                self._entries.append(entry_of(values, len(self._users)))
            else:
                self._entries[values[0] - 1] = released_entry(self._entries[values[0] - 1], values)
        self._check_counter(connection, counter, digests)

    def _check_counter(
        self, connection: sqlite3.Connection, counter: Head | None, digests: dict[int, str]
    ) -> None:
        newest = connection.execute(
            "SELECT max((SELECT coalesce(max(number), 0) FROM event), "
            "(SELECT coalesce(max(number), 0) FROM release))"
        ).fetchone()[0]
        told = counter or EMPTY
        if newest < max(told.number, self._head.number):
            raise PrivacyError(
                f"ledger {str(self.path)!r} is an old copy: it ends at row {newest}, its counter at "
                f"{max(told.number, self._head.number)}.  Put the newest file back; to go on from an old one "
                "would spend a budget twice"
            )
        if counter is None and newest == 0:
            write_counter(
                self.counter, EMPTY
            )  # there before the first row: from now on it may not be missing
        if counter is None and newest > 0:
            raise PrivacyError(
                f"ledger {str(self.path)!r}: its counter {str(self.counter)!r} is gone, so that an old copy "
                "could not be told from the newest; put it back, or use a new folder"
            )
        if told.number in digests and digests[told.number] != told.digest:
            raise PrivacyError(
                f"ledger {str(self.path)!r} is not the one that its counter {str(self.counter)!r} counted; "
                "put the newest file back, or use a new folder"
            )

    def _count(self) -> None:
        """Bring the counter to the newest row: after it is committed, before anything is done for it."""
        if (read_counter(self.counter) or EMPTY).number < self._head.number:
            write_counter(self.counter, self._head)

    def _forget(self) -> None:
        self._head, self._entries = EMPTY, []


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, flushed to the disk when it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _meta(connection: sqlite3.Connection, key: str) -> str | None:
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if found is None else str(found[0])


def _set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
