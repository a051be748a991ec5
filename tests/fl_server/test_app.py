"""The server component: importable without heavy work, and only parses and calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from flwr.superlink.grid import http_grid

from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError
from fl_server import app as module
from fl_server.ingress import DECODER
from tests.fake_grid import FakeGrid


@pytest.mark.parametrize("name", ["fl_server.app", "fl_client.app"])
def test_importing_a_component_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


def _context(**config: Any) -> Context:
    return Context(3, 1, {}, RecordDict(), {**RunConfig().to_flat(), **config})


def test_main_parses_and_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module, "run_arms", lambda *arguments: calls.append(arguments))
    grid = FakeGrid({})
    module.main(grid, _context(out=str(tmp_path), **{"federation.rounds": 2}))
    config, got, out = calls[0]
    assert config.federation.rounds == 2 and got is grid and out == tmp_path
    assert isinstance(module.app, ServerApp)


def test_replies_are_decoded_under_guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, seen = getattr(http_grid, DECODER), []
    monkeypatch.setattr(module, "run_arms", lambda *arguments: seen.append(getattr(http_grid, DECODER)))
    module.main(FakeGrid({}), _context(out=str(tmp_path)))
    assert seen[0] is not plain and getattr(http_grid, DECODER) is plain


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"federation\.round"):
        module.main(FakeGrid({}), _context(**{"federation.round": 2}))
