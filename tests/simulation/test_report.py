"""The three files of a report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fl_core.errors import DataError
from simulation.report import flat, report_html, report_json, users_parquet, with_report_seconds, write_report
from simulation.results import ARM_ORDER, REQUIRED
from tests.simulation.report_sample import sample

VOID = {"meta", "img", "source", "br"}


class Checker(HTMLParser):
    """Collects tags, references to other places, and unbalanced elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def strict(text: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


@pytest.fixture(scope="module")
def page() -> str:
    return report_html(sample())


def test_the_json_has_the_agreed_fields_and_no_nan(tmp_path: Path) -> None:
    missing = {"base": {"minority_accuracy": np.nan, "mean_margin": np.nan}}
    files = write_report(sample(arm_changes=missing), tmp_path / "new" / "folder")
    content = strict(files.json.read_text())
    assert list(content["arms"]) == list(ARM_ORDER)
    for part in ("arms", "arms_unseen"):
        assert all(set(REQUIRED) <= set(arm) for arm in content[part].values())
    assert {"references", "bytes_per_user_round", "seconds", "config", "schema", "project"} <= set(content)
    assert content["arms"]["base"]["minority_accuracy"] is None
    assert content["arms"]["dual"]["epsilon_record"] is None
    assert content["arms"]["dual_dp"]["epsilon_record"] == 8.0
    assert content["seconds"]["report"] > 0
    assert content["seconds"]["total"] > content["seconds"]["report"]
    assert sorted(path.name for path in files.json.parent.iterdir()) == [
        "report.html",
        "report.json",
        "users.parquet",
    ]


def test_unseen_is_left_out_where_there_is_none() -> None:
    content = report_json(sample(arms_unseen={}))
    assert "arms_unseen" not in content and "references_unseen" not in content


def test_seconds_that_are_part_of_others_count_once() -> None:
    parts = {"flower": 5.0, "train": {"dual": 20.0}, "training": 30.0, "evaluate": 8.0, "measure": 7.0}
    assert with_report_seconds(sample(seconds=parts), 1.0).seconds["total"] == 39.0


def test_given_seconds_are_kept() -> None:
    assert report_json(sample(seconds={"report": 1.0, "total": 2.0}))["seconds"] == {
        "report": 1.0,
        "total": 2.0,
    }


def test_the_users_table_keeps_rows_and_turns_nan_to_null(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    path.write_bytes(users_parquet(sample()))
    table = pq.read_table(path)
    assert table.num_rows == 400
    assert table["minority_accuracy_dual"][0].as_py() is None
    assert table["user_id"][3].as_py() == "made-up-0003"
    assert table["federated"][0].as_py() is False


def test_a_column_of_mixed_types_is_refused() -> None:
    with pytest.raises(DataError, match="mixes types"):
        users_parquet(sample(users_table={"user_id": ["a", 1]}))


def test_equal_input_gives_equal_files(page: str) -> None:
    assert report_html(sample()) == page
    assert users_parquet(sample()) == users_parquet(sample())


def test_the_page_stands_alone(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    places = [
        value for _, attrs in checker.tags for key, value in attrs.items() if key in ("src", "srcset", "href")
    ]
    assert places and all(value is not None and value.startswith("data:image/") for value in places)
    names = {tag for tag, _ in checker.tags}
    assert not names & {"script", "link", "iframe", "a"}
    assert "url(" not in page and "@import" not in page
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in checker.tags


def test_the_page_is_accessible(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    images = [attrs for tag, attrs in checker.tags if tag == "img"]
    assert images and all(attrs.get("alt") for attrs in images)
    assert all(attrs.get("scope") for tag, attrs in checker.tags if tag == "th")
    assert page.count("<h1>") == 1 and '<html lang="en">' in page


def test_the_first_lines_come_first(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page[page.index("<body>") :])
    order = [
        "Personalization helped.",
        "Did personalization",
        "Whom did it hurt?",
        "At what cost?",
        "All arms",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert len(text[: places[-1]].split()) < 600


def test_every_arm_and_reference_is_in_the_table(page: str) -> None:
    for name in ("base", "shared", "local", "dual", "shared with DP", "dual with DP", "mean of each text"):
        assert re.search(rf"<th scope=\"row\"[^>]*>{name}</th>", page), name


def test_each_view_s_epsilon_stands_with_its_unit_relation_delta_and_lifetime(page: str) -> None:
    rows = re.findall(r"<tr><th scope=\"row\">dual with DP</th>(.*?)</tr>", page, flags=re.S)
    told = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "|", row)) for row in rows if "the public," in row]
    assert len(told) == 1
    for part in ("released shared adapters", "2.82", "6.27", "1e-6", "one user", "leave out one user"):
        assert part in told[0], part
    assert "protect nobody who knows the seed" in page


def test_a_description_ends_with_one_full_stop(page: str) -> None:
    assert "Nobody real. 400 users" in page


def test_names_from_data_are_escaped() -> None:
    groups = {"by_group": {"<b>x</b>": {"accuracy": 0.5, "users": 3}}}
    config = {"path": "<script>alert(1)</script>"}
    text = report_html(sample(arm_changes={"dual": groups, "base": groups}, config=config))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "<b>x" not in text and "&lt;b&gt;x" in text


def test_a_bare_result_still_gives_a_page() -> None:
    full = sample()
    bare = sample(
        arms={"shared": full.arms["shared"]},
        arms_unseen={},
        references={},
        references_unseen={},
        bytes_per_user_round={},
        seconds={},
        curves={},
        users_columns=False,
    )
    text = report_html(bare)
    assert "was not measured" in text and "No arm was trained with differential privacy" in text


def test_an_unusable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(sample(users=20), tmp_path / "file" / "below")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_report(sample(users=20), tmp_path).json.read_text()

    def broken(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(DataError, match="disk full"):
        write_report(sample(users=30), tmp_path)
    assert (tmp_path / "report.json").read_text() == old


def test_flat_joins_keys_with_dots() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
