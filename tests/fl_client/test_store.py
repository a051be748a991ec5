"""Personal numbers on disk: retries, order of rounds, damage, and whose they are."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fl_client.store import PersonalState, PersonalStore
from fl_core.errors import DataError

USER = np.array([3, 5, 7])
PRIOR = np.array([0.5, -1.0], dtype=np.float32)


def _trained(state: PersonalState, server_round: int, step: float) -> PersonalState:
    """As a trainer would: every number moves by ``step``, and one step of each kind is made."""
    return replace(
        state,
        server_round=server_round,
        after=state.before + np.float32(step),
        shared_steps=state.shared_steps_before + 1,
        personal_steps=state.personal_steps_before + 2,
    )


def test_new_users_start_at_the_prior(tmp_path: Path) -> None:
    state = PersonalStore(tmp_path).load(USER, PRIOR)
    assert state.after.tolist() == [[0.5, -1.0]] * 3 and not state.final
    assert state.fusion.tolist() == [[1.0, 0.0]] * 3
    assert not list(tmp_path.iterdir())


def test_every_field_survives_the_disk(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    state = _trained(PersonalState.fresh(USER, PRIOR), 4, 0.25)
    state = replace(state, fusion=np.full((3, 2), 0.5, dtype=np.float32), final=True)
    store.save(state)
    found = store.load(USER, PRIOR)
    for field in fields(PersonalState):
        assert np.array_equal(getattr(found, field.name), getattr(state, field.name)), field.name
    assert len(list(tmp_path.glob("node-0000003.*.npy"))) == 2
    assert len(list(tmp_path.iterdir())) == 3


def test_a_retried_round_starts_where_it_first_did(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    store.save(_trained(store.load(USER, PRIOR).at_start_of(1), 1, 1.0))
    store.save(_trained(store.load(USER, PRIOR).at_start_of(2), 2, 1.0))
    first = store.load(USER, PRIOR)
    store.save(_trained(store.load(USER, PRIOR).at_start_of(2), 2, 1.0))
    again = store.load(USER, PRIOR)
    assert np.array_equal(first.after, again.after) and again.after[0].tolist() == [2.5, 1.0]
    assert again.shared_steps.tolist() == [2, 2, 2] and again.personal_steps.tolist() == [4, 4, 4]
    third = again.at_start_of(3)
    assert np.array_equal(third.before, again.after) and third.shared_steps_before.tolist() == [2, 2, 2]


def test_an_older_round_is_refused(tmp_path: Path) -> None:
    state = _trained(PersonalState.fresh(USER, PRIOR), 5, 1.0)
    with pytest.raises(DataError, match="round 4 was asked for, but round 5"):
        state.at_start_of(4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"no archive at all"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    store = PersonalStore(tmp_path)
    store.save(PersonalState.fresh(USER, PRIOR))
    (tmp_path / "node-0000003.npz").write_bytes(content)
    for read in (lambda: store.load(USER, PRIOR), store.everyone):
        with pytest.raises(DataError, match="node-0000003"):
            read()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    store.save(PersonalState.fresh(USER, PRIOR))
    path = tmp_path / "node-0000003.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="node-0000003"):
        store.load(USER, PRIOR)


def test_other_users_or_another_adapter_are_refused(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    store.save(PersonalState.fresh(USER, PRIOR))
    with pytest.raises(DataError, match="other users"):
        store.load(np.array([3, 4, 5]), PRIOR)
    with pytest.raises(DataError, match="another adapter"):
        store.load(USER, np.zeros(3, dtype=np.float32))


def test_everyone_is_sorted_by_user_and_final_only_if_all_are(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    with pytest.raises(DataError, match="no node has saved"):
        store.everyone()
    for first in (0, 1):
        state = PersonalState.fresh(np.arange(first, 6, 2), PRIOR + first)
        store.save(replace(state, final=first == 0))
    joined = store.everyone()
    assert joined.user.tolist() == [0, 1, 2, 3, 4, 5] and not joined.final
    assert joined.after[:, 0].tolist() == [0.5, 1.5] * 3


def test_a_node_without_users_leaves_others_alone(tmp_path: Path) -> None:
    store, nobody = PersonalStore(tmp_path), np.zeros(0, dtype=np.int64)
    store.save(PersonalState.fresh(np.array([0, 2]), PRIOR))
    assert len(store.load(nobody, PRIOR).user) == 0
    store.save(PersonalState.fresh(nobody, PRIOR))
    assert store.everyone().user.tolist() == [0, 2]


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    for _ in range(3):
        store.save(PersonalState.fresh(USER, PRIOR))
        store.rows(USER, 2)  # of a round that was never finished
    store.save(PersonalState.fresh(USER, PRIOR))
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_are_mapped_and_rows_that_a_trainer_filled_are_not_copied(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    first = store.load(USER, PRIOR).at_start_of(1)
    after = store.rows(USER, 2)
    after[:] = 7.0
    store.save(replace(first, server_round=1, after=after))
    found = store.load(USER, PRIOR).at_start_of(2)
    assert isinstance(found.before, np.memmap) and found.before.filename == after.filename
    assert (found.before == 7.0).all()
    found.before[:] = 9.0  # a slip of a trainer's does not reach the disk
    assert (store.load(USER, PRIOR).after == 7.0).all()
    everyone = store.everyone()
    assert isinstance(everyone.after, np.memmap)
    other = np.array([3, 5])  # a part of a mapped file is not the file
    store.save(replace(PersonalState.fresh(other, PRIOR), after=everyone.after[:2]))
    assert store.load(other, PRIOR).after.tolist() == [[7.0, 7.0]] * 2


def test_a_process_that_dies_before_the_commit_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PersonalStore(tmp_path)
    store.save(_trained(store.load(USER, PRIOR).at_start_of(1), 1, 1.0))
    second = _trained(store.load(USER, PRIOR).at_start_of(2), 2, 1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", _dies)
        store.save(second)
    found = PersonalStore(tmp_path).load(USER, PRIOR)
    assert found.server_round == 1 and found.after[0].tolist() == [1.5, 0.0]
    store.save(_trained(found.at_start_of(2), 2, 1.0))
    assert store.load(USER, PRIOR).after[0].tolist() == [2.5, 1.0]
    assert len(list(tmp_path.glob("*.npy"))) == 2


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_nobody_s_numbers_need_no_file(tmp_path: Path) -> None:
    store, none = PersonalStore(tmp_path), np.zeros(0, dtype=np.float32)
    store.save(_trained(PersonalState.fresh(USER, none), 1, 0.0))
    assert store.load(USER, none).after.shape == (3, 0)
    assert store.everyone().before.shape == (3, 0)
    assert not list(tmp_path.glob("*.npy"))


def test_a_truncated_or_foreign_file_of_numbers_is_named(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path)
    store.save(PersonalState.fresh(USER, PRIOR))
    for path in tmp_path.glob("*.npy"):
        np.save(path, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match="holds 2 users and not 3"):
        store.load(USER, PRIOR)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="node-0000003"):
        store.load(USER, PRIOR)
