"""A hash chain over a ledger's rows, and a counter in a second file that notices an old copy.

Each row's hash covers the row before it, so that no row can be changed, left out or put in.
An old copy of the whole ledger is a valid chain; the *counter* beside it, the number and hash of
the newest row, says that rows are missing.  It is written after a row is committed and before
anything is done that the row pays for: where it lags behind, nothing was done yet.

Limits: whoever restores both files together is not noticed, nor is whoever can write both; on
a device the counter belongs where backups do not reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_core.atomic import write_bytes
from fl_core.errors import PrivacyError

Value = str | int | float
"""What a row's column holds; blobs as hexadecimal digits."""


@dataclass(frozen=True)
class Head:
    """The newest row: its ``number`` (0: none) and hash."""

    number: int
    digest: str

    def then(self, values: Sequence[Value]) -> Head:
        """The head after one more row of ``values``."""
        text = json.dumps([self.digest, self.number + 1, *values])
        return Head(self.number + 1, hashlib.sha256(text.encode()).hexdigest())


EMPTY = Head(0, "")


def read_counter(path: Path) -> Head | None:
    """The counter in ``path``, or None where there is none.

    Raises ``PrivacyError`` where it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Head(int(found["number"]), str(found["digest"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"ledger counter {str(path)!r} cannot be read ({error}); restore it, or train with a new folder"
        ) from error


def write_counter(path: Path, head: Head) -> None:
    """Replace the counter, and flush it to the disk."""
    write_bytes(path, json.dumps({"number": head.number, "digest": head.digest}).encode())
