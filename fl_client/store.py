"""Personal adapters on disk: they survive rounds, actors and crashes, and never travel.

One folder an arm, one file a node: ``node-<first user>.npz`` with the personal numbers of its
users *before and after* the last round that they trained in, so that a retried round starts
where it first started, and the steps that each user really made.  Files are replaced
atomically.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PersonalState:
    """The personal side of U users of one node.

    ``user`` [U] index in the population; ``server_round`` the last trained round (-1: none);
    ``before``, ``after`` [U, D_p] personal numbers around that round; ``shared_steps_before``,
    ``shared_steps`` and ``personal_steps_before``, ``personal_steps`` [U] steps made so far;
    ``fusion`` [U, 2] the chosen (w_s, w_p); ``final`` whether the users have personalised.
    """

    user: IntArray
    server_round: int
    before: FloatArray
    after: FloatArray
    shared_steps_before: IntArray
    shared_steps: IntArray
    personal_steps_before: IntArray
    personal_steps: IntArray
    fusion: FloatArray
    final: bool

    @staticmethod
    def fresh(user: IntArray, prior: FloatArray) -> PersonalState:
        """Users who start at the prior [D_p]."""
        rows = np.repeat(prior[None], len(user), axis=0)
        none = np.zeros(len(user), dtype=np.int64)
        fusion = np.repeat(np.array([[1.0, 0.0]], dtype=np.float32), len(user), axis=0)
        return PersonalState(user, -1, rows, rows, none, none, none, none, fusion, False)

    def at_start_of(self, server_round: int) -> PersonalState:
        """The state from which ``server_round`` trains: a retry starts where it first did."""
        if server_round > self.server_round:
            return replace(
                self,
                before=self.after,
                shared_steps_before=self.shared_steps,
                personal_steps_before=self.personal_steps,
            )
        if server_round == self.server_round:
            return self
        raise DataError(
            f"personal store: round {server_round} was asked for, but round {self.server_round} was "
            "already trained; give the run a new output folder"
        )


class PersonalStore:
    """The files of one arm's personal adapters in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, user: IntArray, prior: FloatArray) -> PersonalState:
        """The state of a node's users; fresh where nothing was saved.

        Raises ``DataError`` where the file is damaged or holds other users.
        """
        if not len(user) or not self._path(user).exists():
            return PersonalState.fresh(user, prior)
        path = self._path(user)
        state = _read(path)
        if not np.array_equal(state.user, user) or state.after.shape[1:] != prior.shape:
            raise DataError(
                f"personal store {str(path)!r} holds other users or another adapter; "
                "keep the number of nodes of a run, or give it a new output folder"
            )
        return state

    def save(self, state: PersonalState) -> None:
        """Replace the node's file in one step; a node without users has none."""
        if not len(state.user):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(state.user)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, **{field.name: getattr(state, field.name) for field in fields(state)})
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def everyone(self) -> PersonalState:
        """All nodes' states, sorted by user.

        Raises ``DataError`` where no node has saved anything.
        """
        states = [_read(path) for path in sorted(self.folder.glob("node-*.npz"))]
        if not states:
            raise DataError(f"personal store {str(self.folder)!r}: no node has saved an adapter yet")
        order = np.argsort(np.concatenate([state.user for state in states]))
        joined = {
            field.name: np.concatenate([getattr(state, field.name) for state in states])[order]
            for field in fields(PersonalState)
            if field.name not in ("server_round", "final")
        }
        last = max(state.server_round for state in states)
        return PersonalState(**joined, server_round=last, final=all(state.final for state in states))

    def _path(self, user: IntArray) -> Path:
        return self.folder / f"node-{int(user[0]):07d}.npz"


def _read(path: Path) -> PersonalState:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {field.name: file[field.name] for field in fields(PersonalState)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"personal store {str(path)!r} cannot be read ({error})") from error
    arrays["server_round"], arrays["final"] = int(arrays["server_round"]), bool(arrays["final"])
    return PersonalState(**arrays)
