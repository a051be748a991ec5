"""Looks for bytes in every file under a folder, hidden ones too."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path


def spellings(text: str) -> Iterator[bytes]:
    """Ways in which a text may lie on a disk in the clear."""
    yield text.encode()
    yield from (text.encode(code) for code in ("utf-16-le", "utf-16-be", "latin-1") if _fits(text, code))
    yield json.dumps(text)[1:-1].encode()
    yield json.dumps(json.dumps(text))[1:-1].strip('\\"').encode()
    yield text.encode().hex().encode()
    for shift in range(3):  # of base64's groups of three, less the ends that depend on neighbours
        yield base64.b64encode(b"\0" * shift + text.encode())[4:-4]


def _fits(text: str, code: str) -> bool:
    try:
        text.encode(code)
    except UnicodeEncodeError:
        return False
    return True


def hits(folder: Path, needles: Iterable[bytes]) -> list[str]:
    """Names of files that hold a needle, once for each needle."""
    wanted = list(needles)
    assert wanted and all(len(needle) >= 8 for needle in wanted), "a search that finds by chance, or nothing"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "nothing to search"
    return [path.name for path in files for needle in wanted if needle in path.read_bytes()]
