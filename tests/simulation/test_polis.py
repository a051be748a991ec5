"""Polis conversations: what is kept, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Split, ValuesPair
from simulation.polis import build_polis, question
from simulation.splits import SplitShares, check_no_leak

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "polis"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real votes (../shared/data/polis) are not here")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def statement(key: int) -> dict[str, Any]:
    return {"statement_id": str(key), "text": f"Statement {key}.\n"}


def vote(user: str, key: int, value: Any = 1, time: Any = None) -> dict[str, Any]:
    return {"user_id": user, "statement_id": str(key), "vote": value, "timestamp_ms": time}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 statements; ann votes on all, bob passes on half, cy votes four times."""
    (tmp_path / "conversation.json").write_text(json.dumps({"question": "What  to\ndo?", "topic": "Town"}))
    write_lines(tmp_path / "statements.jsonl.gz", [statement(i) for i in range(20)])
    votes = [vote("ann", i, 1 if i % 2 else -1, 1000 + i) for i in range(20)]
    votes += [vote("bob", i, 0 if i % 2 else 1) for i in range(20)] + [vote("cy", i) for i in range(4)]
    write_lines(tmp_path / "votes.jsonl.gz", votes)
    write_lines(tmp_path / "groups.jsonl.gz", [{"user_id": "ann", "group": "1"}])
    return tmp_path


def build(folder: Path, **settings: Any) -> Any:
    return build_polis(folder, 0, 0, SplitShares(unfederated_users=0), **settings)


def test_votes_become_records(folder):
    values = (ValuesPair("p", "good", "bad"),)
    population = build(folder, values=values)
    assert [(u.user_id, u.group) for u in population.users] == [("ann", "1"), ("bob", "")]
    assert "1 people with fewer than 10 votes" in population.about
    assert population.values == values
    assert population.texts[3].prompt == "What to do?" and population.texts[3].response == "Statement 3."
    records = population.records
    assert len(records) == 30 and (records.rejected == NO_TEXT).all()
    ann = records.take(records.user == 0)
    assert dict(zip(ann.chosen.tolist(), ann.label.tolist(), strict=True)) == {
        i: 1 if i % 2 else -1 for i in range(20)
    }
    assert dict(zip(ann.chosen.tolist(), ann.time.tolist(), strict=True)) == {i: 1000 + i for i in range(20)}
    bob = records.take(records.user == 1)
    assert sorted(bob.chosen.tolist()) == list(range(0, 20, 2)) and (bob.label == 1).all()
    check_no_leak(population)


def test_groups_never_decide_anything(folder):
    before = build(folder)
    (folder / "groups.jsonl.gz").unlink()
    after = build(folder)
    assert np.array_equal(before.records.split, after.records.split)
    assert before.texts == after.texts and [u.group for u in after.users] == ["", ""]


def test_minimum_votes_and_users(folder):
    assert len(build(folder, minimum_votes=4).users) == 3
    assert len(build_polis(folder, 1, 0, SplitShares(unfederated_users=0)).users) == 1
    with pytest.raises(DataError, match="lower its minimum"):
        build(folder, minimum_votes=21)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (vote("ann", 99), "line 45.*statement_id='99'"),
        (vote("dan", 1, 2), "line 45.*vote=2"),
        (vote("dan", 1, True), "line 45.*vote=True"),
        (vote("ann", 0), "line 45.*voted twice"),
        (vote("dan", 1, 1, "noon"), "line 45.*timestamp_ms='noon'"),
        ({"statement_id": "1", "vote": 1}, "line 45.*user_id=None"),
        ('{"user_id": "ann", ', "line 45.*not JSON"),
        ("[1, 2]", "line 45.*list instead of a JSON object"),
    ],
)
def test_bad_votes_are_refused_with_their_line(folder, row, message):
    with gzip.open(folder / "votes.jsonl.gz", "at", encoding="utf-8") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(DataError, match=rf"votes\.jsonl\.gz, {message}"):
        build(folder)


@pytest.mark.parametrize("name", ["conversation.json", "statements.jsonl.gz", "votes.jsonl.gz"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        build(folder)


def test_cut_off_and_mistyped_files_are_named(folder):
    path = folder / "votes.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        build(folder)
    path.write_text("plain text")
    with pytest.raises(DataError, match="cannot be read"):
        build(folder)


def test_a_statement_that_stands_twice_is_refused(folder):
    write_lines(folder / "statements.jsonl.gz", [statement(1), statement(1)])
    with pytest.raises(DataError, match=r"line 2.*stands twice"):
        build(folder)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"question": "Why?", "topic": "T"}, "Why?"),
        ({"question": "", "topic": "Topic"}, "Topic"),
        ({"question": "x" * 300, "topic": "Topic"}, "Topic"),
        ({"question": "x" * 300}, "x" * 240),
    ],
)
def test_question_or_topic(tmp_path, head, expected):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps(head))
    assert question(path) == expected


def test_no_question_at_all_is_refused(tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="both empty"):
        question(path)


@needs_data
def test_real_conversation():
    population = build_polis(DATA / "15-per-hour-seattle", 0, 0, SplitShares())
    assert len(population.users) == 87 and len(population.texts) == 31 and len(population.records) == 1532
    assert set(population.records.split.tolist()) == {int(s) for s in Split}
    check_no_leak(population)
