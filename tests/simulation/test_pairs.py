"""Pairs from JSON lines, and the UKPConvArg converter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import Split
from simulation.pairs import build_pairs, convert_ukpconvarg
from simulation.splits import SplitShares, check_no_leak

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "ukpconvarg" / "judgments.jsonl.gz"
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="real judgments (../shared/data/ukpconvarg) are not here"
)
SHARES = SplitShares(unfederated_users=0)


def row(user: str = "ann", prompt: int = 0, **changes: Any) -> dict[str, Any]:
    return {"user_id": user, "prompt": f"p{prompt}", "chosen": "yes", "rejected": "no"} | changes


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def test_lines_become_records(tmp_path):
    rows = [row("ann", i, context="work" if i % 2 else "home", timestamp=5000 + i) for i in range(10)]
    rows += [row("bob", i, chosen="no", rejected="yes") for i in range(6)] + [row("cy", 0)]
    population = build_pairs(write(tmp_path / "my.jsonl", rows), 0, 0, SHARES)
    assert population.name == "pairs:my" and [u.user_id for u in population.users] == ["ann", "bob"]
    assert "1 people with fewer than 5 choices" in population.about
    assert population.contexts == ("", "home", "work")
    records = population.records
    assert len(records) == 16 and records.is_pair().all() and (records.label == 1).all()
    for i in range(len(records)):
        chosen, rejected = population.texts[records.chosen[i]], population.texts[records.rejected[i]]
        assert chosen.prompt == rejected.prompt
        assert (chosen.response, rejected.response) == (
            ("yes", "no") if records.user[i] == 0 else ("no", "yes")
        )
    assert records.time[:2].tolist() == [5000, 5001]
    assert [population.contexts[c] for c in records.context[:2]] == ["home", "work"]
    assert len(population.texts) == 20
    check_no_leak(population)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 0),
        ("", 0),
        (1500, 1500),
        (1500.7, 1500),
        ("1970-01-01T00:00:02", 2000),
        ("1970-01-01T00:00:02Z", 2000),
        ("1970-01-01T01:00:02+01:00", 2000),
        ("1970-01-01 00:00:02.0 UTC", 2000),
    ],
)
def test_timestamps(tmp_path, given, expected):
    rows = [row("ann", i, timestamp=given) for i in range(5)]
    population = build_pairs(write(tmp_path / "t.jsonl", rows), 0, 0, SHARES)
    assert (population.records.time == expected).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(timestamp="yesterday"), "timestamp='yesterday'"),
        (row(timestamp=True), "timestamp=True"),
        (row(timestamp=float("nan")), "timestamp=nan"),
        (row(rejected="yes"), "the same text"),
        (row(chosen=""), "chosen=''"),
        (row(prompt=None) | {"prompt": None}, "prompt=None"),
        ("nonsense", "not JSON"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path, bad, message):
    path = write(tmp_path / "bad.jsonl", [row(), bad])
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 2: .*{message}"):
        build_pairs(path, 0, 0, SHARES)


def test_missing_empty_and_sparse_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        build_pairs(tmp_path / "absent.jsonl", 0, 0, SHARES)
    for rows in ([], [row()]):
        with pytest.raises(DataError, match="minimum_pairs=5"):
            build_pairs(write(tmp_path / "few.jsonl", rows), 0, 0, SHARES)


def test_unseen_pairs_share_no_text_with_training(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for user in range(20):
        for prompt in range(30):
            first, second = generator.choice(5, 2, replace=False)
            rows.append(row(f"u{user}", prompt, chosen=f"a{first}", rejected=f"a{second}"))
    population = build_pairs(write(tmp_path / "many.jsonl", rows), 0, 0, SHARES)
    records = population.records
    trained = records.of_split(Split.TRAIN, Split.HOLDBACK, Split.VALIDATION)
    unseen = records.of_split(Split.UNSEEN)
    texts = set(trained.chosen.tolist()) | set(trained.rejected.tolist())
    assert len(unseen) and not texts & (set(unseen.chosen.tolist()) | set(unseen.rejected.tolist()))


def test_converter(tmp_path):
    def judgment(user: str, chosen: str, rejected: str) -> dict[str, str]:
        return {
            "user_id": user,
            "timestamp": "2016-01-31 16:59:52.0 UTC",
            "debate": "Cats or dogs?",
            "stance": "Cats",
            "chosen": chosen,
            "rejected": rejected,
        }

    rows = [
        judgment("ann", "a", "b"),
        judgment("ann", "b", "c"),
        judgment("ann", "c", "c"),
        judgment("bob", "a", "b"),
    ]
    source, out = tmp_path / "j.jsonl.gz", tmp_path / "out" / "pairs.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    assert convert_ukpconvarg(source, out, minimum_pairs=2) == 2
    population = build_pairs(out, 0, 0, SHARES, minimum_pairs=2)
    assert population.name == "pairs:pairs"
    assert {t.prompt for t in population.texts} == {"Cats or dogs? Cats"}
    assert (population.records.time == 1454259592000).all()
    with pytest.raises(DataError, match="minimum_pairs=4"):
        convert_ukpconvarg(source, out, minimum_pairs=4)


@needs_data
def test_real_judgments(tmp_path):
    out = tmp_path / "ukp.jsonl"
    assert convert_ukpconvarg(DATA, out) == 42151
    population = build_pairs(out, 0, 0, SplitShares())
    assert len(population.users) == 711 and len({t.prompt for t in population.texts}) == 26
    check_no_leak(population)
