"""Files are the old version or the new one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fl_core.atomic import write_bytes, write_json, write_private


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    write_json(path, {"round": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"round": float("nan")})
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"round": 1}
    assert [item.name for item in path.parent.iterdir()] == ["state.json"]


def test_a_private_file_is_the_owners_and_leaves_no_litter(tmp_path: Path) -> None:
    path, left = tmp_path / "key", tmp_path / ".key.12345.partial"
    left.write_text("half of a key")  # a process was killed here
    (tmp_path / ".keys.12345.partial").write_text("another file's")
    before = os.umask(0)
    try:
        write_private(path, b"old")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(TypeError):
        write_private(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert sorted(item.name for item in tmp_path.iterdir()) == [".keys.12345.partial", "key"]
