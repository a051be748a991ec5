"""Read a written report back, so that its page can be made again with a newer version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fl_core.errors import DataError
from simulation.results import SCHEMA_VERSION, PopulationSummary, Results

PARTS = (
    "config",
    "arms",
    "arms_unseen",
    "references",
    "references_unseen",
    "bytes_per_user_round",
    "seconds",
    "privacy",
    "curves",
)
"""Fields of ``Results`` that ``report.json`` holds under their own names."""


def read_results(out: Path) -> Results:
    """The results in ``out/report.json`` and ``out/users.parquet``.

    Raises ``DataError`` where they are missing, unreadable, or of another schema.
    """
    content = _content(out / "report.json")
    if content.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"{out / 'report.json'}: schema={content.get('schema')!r}, this version reads {SCHEMA_VERSION}; "
            "run `duet simulate` again"
        )
    try:
        population = PopulationSummary(**content["population"])
        users = pq.read_table(out / "users.parquet").to_pydict()
        given = {name: content[name] for name in PARTS if name in content}
        return Results(population=population, users=users, **given)
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{out}: is no complete report ({error}); run `duet simulate` again") from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the folder of a finished run") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no report; give the folder of a finished run")
    return content
