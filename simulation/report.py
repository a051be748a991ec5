"""Write a finished run's report: ``report.json``, ``users.parquet`` and ``report.html``.

``report.json`` is for programs and never holds NaN; ``report.html`` is one file for people that
needs no network, no script and no other file; ``users.parquet`` has one row a user.  Each is
written beside its place and moved there, the JSON last, so a report that has it is complete.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from fl_core.errors import DataError
from simulation import figures, wording
from simulation.findings import findings, rounds_of
from simulation.report_template import PAGE, STYLE, TERMS
from simulation.results import SCHEMA_VERSION, ArmResult, Results, jsonable


@dataclass(frozen=True)
class ReportFiles:
    """The paths of a written report."""

    json: Path
    users: Path
    html: Path


@dataclass(frozen=True)
class Picture:
    """A figure as data URIs for a light and a dark page, with its text alternative."""

    light: str
    dark: str
    alt: str
    caption: str


def write_report(results: Results, out: Path) -> ReportFiles:
    """Write the three files into the folder ``out``, which is made if needed.

    ``seconds.report`` and ``seconds.total`` are filled in where ``results`` has none.  Raises
    ``DataError`` where a value cannot be written or the folder cannot be used.
    """
    started = time.perf_counter()
    drawn = pictures(results)
    results = with_report_seconds(results, time.perf_counter() - started)
    files = ReportFiles(out / "report.json", out / "users.parquet", out / "report.html")
    text = json.dumps(report_json(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(files.users, users_parquet(results))
        write_atomically(files.html, report_html(results, drawn).encode())
        write_atomically(files.json, text.encode())
    except OSError as error:
        raise DataError(
            f"out={str(out)!r}: cannot write the report ({error}); choose another folder"
        ) from error
    return files


def report_json(results: Results) -> dict[str, Any]:
    """What ``report.json`` holds, as plain JSON types; ``arms_unseen`` only where there are any."""
    content: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "project": {"name": "fedduet", "version": project_version()},
        "findings": findings(results),
        "population": results.population,
        "arms": {name: arm.to_mapping() for name, arm in results.arm_items()},
        "references": results.references,
        "privacy": results.privacy,
        "bytes_per_user_round": results.bytes_per_user_round,
        "seconds": results.seconds,
        "curves": results.curves,
        "config": results.config,
    }
    if results.arms_unseen:
        content["arms_unseen"] = {name: arm.to_mapping() for name, arm in results.arm_items(unseen=True)}
        content["references_unseen"] = results.references_unseen
    plain: dict[str, Any] = jsonable(content)
    return plain


def report_html(results: Results, drawn: Mapping[str, Picture | None] | None = None) -> str:
    """The page; ``drawn`` are its pictures where they were made before."""
    return (
        _environment()
        .from_string(PAGE)
        .render(
            style=STYLE,
            first=findings(results),
            population=results.population,
            contexts=[context for context in results.population.contexts if context],
            arms=results.arm_items(),
            arms_unseen=results.arm_items(unseen=True),
            references=_filled(results.references.items(), _REFERENCE),
            references_unseen=_filled(results.references_unseen.items(), _REFERENCE),
            about=wording.ARM_ABOUT,
            pictures=pictures(results) if drawn is None else drawn,
            breakdowns=tuple(_breakdowns(results)),
            privacy=_filled(results.private_items(), _PRIVACY),
            promises=tuple(_promises(results)),
            costs=tuple(_costs(results)),
            times=tuple(_times(results)),
            terms=TERMS,
            config=tuple(flat(results.config).items()),
            version=project_version(),
            schema=SCHEMA_VERSION,
        )
    )


def users_parquet(results: Results) -> bytes:
    """The users' table as Parquet; NaN becomes null."""
    try:
        columns = {name: pa.array(values, from_pandas=True) for name, values in results.users.items()}
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"users: a column mixes types ({error}); give each column one type") from error
    table = pa.table(columns).replace_schema_metadata({"duet.schema": str(SCHEMA_VERSION)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def pictures(results: Results) -> dict[str, Picture | None]:
    """The page's pictures by name; ``None`` where there is nothing to draw."""
    who = "Each user's change under {} against shared"
    return {
        "accuracy": _picture(
            figures.accuracy_by_arm(results),
            "Accuracy of each arm with its 95% interval, seen texts; the table above has the figures",
            "Accuracy with its 95% interval over users. Hollow marks: with differential privacy (DP). Dotted "
            "lines: references without a language model.",
        ),
        "accuracy_unseen": _picture(
            figures.accuracy_by_arm(results, unseen=True),
            "Accuracy of each arm with its 95% interval, unseen texts; the table above has the figures",
            "The same on texts that nobody's training contained.",
        ),
        "change_dual": _picture(
            figures.change_by_user(results, "dual"), who.format("dual"), who.format("dual") + "."
        ),
        "change_dual_dp": _picture(
            figures.change_by_user(results, "dual_dp"),
            who.format("dual with DP"),
            who.format("dual with DP") + " (shared without DP).",
        ),
        "records": _picture(
            figures.accuracy_by_records(results),
            "Accuracy of each arm by number of records; the table below has the figures",
            "Accuracy by a user's number of training records. Dashed with hollow marks: with differential "
            "privacy.",
        ),
        "groups": _picture(
            figures.change_by_group(results),
            "Change of each group under dual against shared, with 95% intervals",
            "Change by group, dual against shared, with 95% intervals; number of users in brackets. Left of "
            "zero: the group is worse off. With many groups, one in twenty misses zero by chance.",
        ),
        "curves": _picture(
            figures.training_curves(results),
            "Norm of the aggregated update by round, one line an arm",
            "Norm of the aggregated update by round: it should settle, not grow.",
        ),
    }


PART_OF = {"flower": "training", "train": "training", "measure": "evaluate"}
"""Seconds that are contained in those of another name, where that is there."""


def with_report_seconds(results: Results, elapsed: float) -> Results:
    """``results`` with ``seconds.report`` and ``seconds.total`` where they were missing."""
    seconds = dict(results.seconds)
    if seconds.get("report") is None:
        seconds["report"] = elapsed
    if seconds.get("total") is None:
        parts = {
            key: value
            for key, value in seconds.items()
            if value is not None and seconds.get(PART_OF.get(key, "")) is None
        }
        seconds["total"] = sum(flat(parts).values())
    return replace(results, seconds=seconds)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, and move into place."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def project_version() -> str:
    """The installed version of the project, ``"unknown"`` when it runs from a bare checkout."""
    try:
        return importlib.metadata.version("fedduet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def _picture(svg: bytes | None, alt: str, caption: str) -> Picture | None:
    if svg is None:
        return None
    return Picture(_data_uri(svg), _data_uri(figures.dark(svg)), alt, caption)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


_REFERENCE = ("accuracy", "bottom_decile", "minority_accuracy")
_PRIVACY = (
    "epsilon_record",
    "delta",
    "unit",
    "views",
    "noise",
    "sigma_shared",
    "sigma_personal",
    "user_noise",
    "shared_steps",
    "personal_steps",
    "sampling_rate",
    "clip",
)


def _filled(
    entries: Iterable[tuple[str, Mapping[str, Any]]], keys: tuple[str, ...]
) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The entries with exactly ``keys``, ``None`` where one was not given."""
    return tuple((name, {key: entry.get(key) for key in keys}) for name, entry in entries)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        name=wording.name,
        adversary=lambda view: wording.ADVERSARIES.get(view, view),
        percent=wording.percent,
        number=wording.number,
        interval=wording.interval,
        size=wording.size,
        duration=wording.duration,
        count=lambda value: wording.number(value, 0),
        compact=wording.compact,
        stop=lambda text: text.rstrip(". ") + ".",
        capitalized=lambda text: text[:1].upper() + text[1:],
    )
    return environment


_BREAKDOWNS = (("Group", "by_group"), ("Records of a user", "by_records"), ("Context", "by_context"))


def _breakdowns(
    results: Results,
) -> Iterator[tuple[str, list[str], list[tuple[str, Any, list[float | None]]]]]:
    for title, field in _BREAKDOWNS:
        arms = [(name, arm) for name, arm in results.arm_items() if set(getattr(arm, field)) - {""}]
        if arms:
            yield title, [name for name, _ in arms], _breakdown_rows(arms, field)


def _breakdown_rows(
    arms: list[tuple[str, ArmResult]], field: str
) -> list[tuple[str, Any, list[float | None]]]:
    first = getattr(arms[0][1], field)
    return [
        (
            str(label),
            entry.get("users"),
            [getattr(arm, field).get(label, {}).get("accuracy") for _, arm in arms],
        )
        for label, entry in first.items()
    ]


def _promises(results: Results) -> Iterator[str]:
    entries = results.private_items()
    for epsilon in sorted({float(entry["epsilon_record"]) for _, entry in entries}):
        yield (
            f"At ε = {epsilon:.2f} the probability of any outcome changes by at most a factor of "
            f"{math.exp(min(epsilon, 700.0)):,.1f} (but for δ) when one unit of data is added or removed. "
            "This is the worst case that is proven, not what an attack is known to reach."
        )
    if any(entry.get("noise", "simulation") != "system" for _, entry in entries):
        yield (
            "The noise of this run came from its seed, so that the run can be repeated: the figures are what "
            "a deployment would reach, but these very adapters protect nobody who knows the seed."
        )
    if any(str(entry["unit"]) == "record" for _, entry in entries):
        yield (
            "The unit is one record: the guarantee hides a single piece of feedback. For all records of a "
            "user together it weakens with their number, and it does not hide that a user takes part."
        )
    yield (
        "The relation says which data sets must look alike: with or without one unit. Replacing one unit by "
        "another is about two such changes."
    )


def _costs(results: Results) -> Iterator[dict[str, Any]]:
    train = results.seconds.get("train")
    train = train if isinstance(train, Mapping) else {}
    for arm, _ in results.arm_items():
        traffic, rows = results.bytes_per_user_round.get(arm) or {}, results.curves.get(arm) or ()
        if not traffic and arm not in train and not rows:
            continue
        rounds = len(rows) or (rounds_of(results) if traffic else None)
        both = (traffic.get("up"), traffic.get("down"))
        yield {
            "arm": arm,
            "up": both[0],
            "down": both[1],
            "whole": sum(both) * rounds if rounds and None not in both else None,  # type: ignore[arg-type]
            "train": train.get(arm),
            "rounds": rounds,
            "replies": sum(row.get("replies") or 0 for row in rows) if rows else None,
            "rejected": sum(row.get("rejected") or 0 for row in rows) if rows else None,
        }


def _times(results: Results) -> Iterator[tuple[str, float]]:
    for key in ("prepare", "train", "evaluate", "report", "total"):
        value = results.seconds.get(key)
        if isinstance(value, Mapping):
            value = sum(seconds for seconds in value.values() if seconds is not None)
        if value is not None:
            yield key, float(value)
