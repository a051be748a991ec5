"""The report's input is checked where it enters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.errors import DataError
from simulation.results import REQUIRED, ArmResult, jsonable
from tests.simulation.report_sample import GUARANTEE, sample


def arm(**changed: Any) -> dict[str, Any]:
    return {**dict.fromkeys(REQUIRED), "accuracy": 0.7, "ci95": (0.6, 0.8), **changed}


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_measure_is_named(key: str) -> None:
    values = {name: value for name, value in arm().items() if name != key}
    with pytest.raises(DataError, match=rf"arms\.dual: missing {key}"):
        ArmResult.from_mapping("dual", values)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("duel", {}, "unknown arm 'duel'"),
        ("dual", {"accuracy": 71.0}, "must be a fraction"),
        ("dual", {"accuracy": "good"}, "must be a number"),
        ("dual", {"ci95": (0.8, 0.6)}, "low end above high end"),
        ("dual", {"ci95": (0.8,)}, r"must be \(low, high\)"),
        ("dual_dp", {}, "must state both"),
        ("dual_dp", {"epsilon_record": 8.0}, "must state both"),
        ("dual_dp", {"epsilon_record": math.inf, "delta": 1e-5}, "must state both"),
        ("dual", {"epsilon_record": 8.0, "delta": 1e-5}, "has no guarantee"),
    ],
)
def test_wrong_arms_are_refused(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArmResult.from_mapping(name, arm(**changed))


def test_nan_becomes_none_and_unknown_fields_stay() -> None:
    found = ArmResult.from_mapping("dual", arm(minority_accuracy=np.nan, minority_pairs=12))
    assert found.minority_accuracy is None
    assert found.to_mapping()["minority_pairs"] == 12


def test_an_epsilon_needs_its_origin_unit_and_relation() -> None:
    with pytest.raises(DataError, match="no entry for arm"):
        sample(privacy={})
    bare = {key: value for key, value in GUARANTEE.items() if key != "unit"}
    with pytest.raises(DataError, match="missing unit; an epsilon is never shown without"):
        sample(privacy=dict.fromkeys(("shared_dp", "local_dp", "dual_dp"), bare))


def test_ragged_columns_and_no_arms_are_refused() -> None:
    with pytest.raises(DataError, match="one length"):
        sample(users_table={"user_id": ["a"], "group": []})
    with pytest.raises(DataError, match="at least one evaluated arm"):
        sample(arms={})


def test_jsonable_holds_no_nan_and_refuses_what_json_cannot_hold() -> None:
    value = {"a": np.float64("nan"), "b": (1, np.int32(2)), 3: np.array([1.0, np.inf]), "p": Path("x")}
    assert jsonable(value) == {"a": None, "b": [1, 2], "3": [1.0, None], "p": "x"}
    with pytest.raises(DataError, match="cannot hold a bytes"):
        jsonable(b"x")
