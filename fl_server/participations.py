"""How often each device has sent in, over all runs of this server: no more than was declared.

A device's uploads are covered by ``strategies.user_level`` for at most
``privacy.participations`` rounds of ``privacy.window_days`` days and
``privacy.lifetime_participations`` in all.  Devices count for themselves; this is the server's own
count, in one SQLite file.  A participation is written, and is on the disk, before the upload goes
into a sum.  Deleting nothing, it also knows devices that have gone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_core.config import PrivacyConfig
from fl_core.errors import RunError

DAY_SECONDS = 86_400.0
LOCK_SECONDS = 60.0
"""How long one process waits for another that writes."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS participation (
    node TEXT NOT NULL,
    run TEXT NOT NULL,
    arm TEXT NOT NULL,
    round INTEGER NOT NULL,
    seconds REAL NOT NULL,
    UNIQUE (node, run, arm, round)
);
"""


@dataclass(frozen=True)
class Participations:
    """The count in the file ``path``, for one ``run``.

    All methods raise ``RunError`` where the file cannot be used.
    """

    path: Path
    privacy: PrivacyConfig
    run: str
    clock: Callable[[], float] = time.time

    def exhausted(self) -> frozenset[int]:
        """Devices that may send no more now."""
        since = self.clock() - DAY_SECONDS * self.privacy.window_days
        query = "SELECT node FROM participation GROUP BY node HAVING COUNT(*) >= ? OR SUM(seconds > ?) >= ?"
        limits = (self.privacy.lifetime_participations, since, self.privacy.participations)
        with self._open() as connection:
            return frozenset(int(node) for (node,) in connection.execute(query, limits))

    def record(self, nodes: Sequence[int], arm: str, server_round: int) -> None:
        """Count one participation of each device; a round that is tried again counts once."""
        now = self.clock()
        rows = [(str(node), self.run, arm, server_round, now) for node in nodes]
        with self._open() as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO participation VALUES (?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_SECONDS)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(_SCHEMA)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise RunError(
                f"participations {str(self.path)!r}: cannot be used ({error}); without this count no device "
                "may be asked: restore the file from its backup"
            ) from error
