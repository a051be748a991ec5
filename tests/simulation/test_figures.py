"""Pictures: well-formed, repeatable, showing what they should, absent where there is nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest

from simulation import figures
from simulation.results import Results
from tests.simulation.report_sample import GROUPS, sample

Draw = Callable[[Results], bytes | None]
ALL: tuple[Draw, ...] = (
    figures.accuracy_by_arm,
    figures.change_by_user,
    figures.accuracy_by_records,
    figures.change_by_group,
    figures.training_curves,
)


def words(svg: bytes | None) -> str:
    assert svg is not None
    root = ElementTree.fromstring(svg)
    return " ".join(
        "".join(item.itertext()).strip() for item in root.iter("{http://www.w3.org/2000/svg}text")
    )


@pytest.mark.parametrize("draw", ALL)
def test_a_picture_is_repeatable_and_leaves_no_trace(draw: Draw) -> None:
    before = dict(matplotlib.rcParams)
    assert draw(sample()) == draw(sample())
    assert dict(matplotlib.rcParams) == before


def test_arms_and_references_are_named() -> None:
    text = words(figures.accuracy_by_arm(sample()))
    for name in ("base", "dual with DP", "mean of each text", "matrix factorization, K = 4"):
        assert name in text


def test_the_shares_of_the_change_are_right() -> None:
    results = sample()
    columns = {**results.users, "accuracy_shared": [0.5] * 400}
    columns["accuracy_dual"] = [0.4] * 100 + [0.5] * 60 + [0.6] * 240
    assert "25% worse, 15% equal, 60% better" in words(figures.change_by_user(sample(users_table=columns)))


def test_groups_are_sorted_from_the_worst_with_their_users() -> None:
    text = words(figures.change_by_group(sample()))
    assert all(group in text for group in GROUPS)
    assert text.index("terse (82)") < text.index("wants every step (85)")


def test_many_groups_are_cut_and_said_to_be() -> None:
    columns = {**sample().users, "group": [f"group {index % 30}" for index in range(400)]}
    assert "16 middle groups left out" in words(figures.change_by_group(sample(users_table=columns)))


def test_records_show_their_numbers_of_users() -> None:
    text = words(figures.accuracy_by_records(sample()))
    assert "18 users" in text and "100 or more" in text


def test_nothing_to_draw_gives_none() -> None:
    empty = sample(users_columns=False, curves={}, arms_unseen={})
    assert figures.change_by_user(empty) is None
    assert figures.change_by_group(empty) is None
    assert figures.training_curves(empty) is None
    assert figures.accuracy_by_arm(empty, unseen=True) is None


def test_all_values_missing_does_not_fail() -> None:
    columns = {**sample().users, "accuracy_dual": [np.nan] * 400}
    assert figures.change_by_user(sample(users_table=columns)) is None


def test_dark_changes_colours_only() -> None:
    light = figures.accuracy_by_arm(sample())
    assert light is not None
    night = figures.dark(light)
    assert figures.PAPER.encode() not in night and figures.INK.encode() not in night
    assert words(night) == words(light)


def rows(**changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "dp": dp,
            "records_bucket": bucket,
            "accuracy_gain": 0.03,
            "ci": (0.01, 0.05),
            **changed,
        }
        for dp in (False, True)
        for kind in ("components", "b_only")
        for bucket in ("1-9", "10-19")
    ]


def test_the_sweep_shows_kinds_buckets_and_both_panels() -> None:
    svg = figures.sweep_figure(rows())
    text = words(svg)
    for part in ("components", "b only", "1-9", "10-19", "without differential privacy", "with differential"):
        assert part in text
    assert svg == figures.sweep_figure(rows())


def test_the_sweep_does_without_intervals_and_without_one_panel() -> None:
    assert "components" in words(figures.sweep_figure(rows(ci=None)))
    assert "components" in words(figures.sweep_figure([row for row in rows() if row["dp"]]))
