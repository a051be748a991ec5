"""JSON lines, plain or gzipped, read with errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import DataError


@dataclass(frozen=True)
class Line:
    """One line of a file: where it stands and the JSON object that it holds."""

    path: Path
    number: int
    values: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        """A ``DataError`` that starts with this line's file and number."""
        return DataError(f"{self.path}, line {self.number}: {message}")

    def text(self, key: str) -> str:
        """The non-empty string (or number, as a string) at ``key``; ``DataError`` otherwise."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.error(f"{key}={value!r} must be a non-empty text; it has {sorted(self.values)}")
        return str(value).strip()


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the JSON objects of ``path`` (``.gz``: gzipped), skipping blank lines.

    A folder stands for the one such file in it.  Raises ``DataError`` with file and line where the
    file is missing, cut off, not UTF-8, or a line is not a JSON object.
    """
    path, number = _file(path), 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield Line(path, number, _object(path, number, text))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, after line {number}: cannot be read ({error}); give a complete UTF-8 JSON lines file"
        ) from error


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(file for end in ("*.jsonl", "*.jsonl.gz") for file in path.glob(end))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"{path}: a folder with {names} instead of one JSON lines file; give the file")
    return found[0]


def _object(path: Path, number: int, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error}); one object a line is expected"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {number}: {type(value).__name__} instead of a JSON object")
    return value
