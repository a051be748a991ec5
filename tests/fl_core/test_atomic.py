"""Files are the old version or the new one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_core.atomic import write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    write_json(path, {"round": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"round": float("nan")})
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"round": 1}
    assert [item.name for item in path.parent.iterdir()] == ["state.json"]
