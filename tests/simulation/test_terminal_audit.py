"""The command ``duet audit``: what it prints, what it writes, and its exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from simulation.attacks import WITHOUT, Attacks, Exposure, Membership
from simulation.audit import AUDIT_FILE, PICTURE_FILE, Audit, path_audit
from simulation.cli import app
from simulation.terminal_audit import show
from tests.simulation.sabotage import GROSS
from tests.simulation.test_audit import ideal

SMALL = {"federation.rounds": 3, "privacy.sampling-rate": 1.0}
PNG = b"\x89PNG"


def command(model: Path, out: Path, *more: str) -> list[str]:
    settings = [f"--set={key}={value}" for key, value in (SMALL | {"model": str(model)}).items()]
    return ["audit", "--canaries", "256", "--out", str(out), *settings, *more]


def test_command_prints_one_json_object(tiny_model_folder: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, command(tiny_model_folder, tmp_path, "--json"))
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert {"epsilon_lower_bound", "epsilon_claimed", "moment_gate", "verdict"} <= set(found)
    assert (found["moment_gate"], found["verdict"]) == ("pass", "pass")
    assert found["epsilon_lower_bound"] <= found["epsilon_claimed"]
    parts = ("shared", "personal", "joint", "cohort engine")
    assert set(found["paths"]) == {f"{part}, epsilon {value}" for part in parts for value in (1, 8)}
    assert found == json.loads((tmp_path / AUDIT_FILE).read_text(encoding="utf-8"))
    assert (tmp_path / PICTURE_FILE).read_bytes().startswith(PNG)


def test_command_exits_with_1_where_privacy_does_not_hold(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GROSS["no noise"](monkeypatch)
    shown = CliRunner().invoke(app, command(tiny_model_folder, tmp_path))
    assert shown.exit_code == 1
    assert "the claim does not hold" in " ".join(shown.stdout.split())
    found = json.loads((tmp_path / AUDIT_FILE).read_text(encoding="utf-8"))
    assert (found["moment_gate"], found["verdict"]) == ("fail", "fail")
    assert found["epsilon_lower_bound"] > found["epsilon_claimed"]


def test_wrong_claim_is_a_usable_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, command(tiny_model_folder, tmp_path, "--epsilon", "3"))
    assert shown.exit_code == 1
    assert "epsilon=3.0" in str(shown.exception)


@pytest.mark.parametrize(("bits", "words"), [(6.0, False), (1.4, True)])
def test_attacks_are_shown_with_their_control(bits: float, words: bool) -> None:
    """Attacks that fail without privacy are said to show nothing."""
    strong = Membership(0.9, (0.8, 1.0), 0.4, (0.3, 0.5), 10, 10)
    members = {f"{part}, loss, {WITHOUT}": strong for part in ("shared", "personal")}
    attacks = Attacks(members, {WITHOUT: Exposure(bits, 1.42, 8.0, (1,))})
    console = Console(record=True, width=200, file=io.StringIO())
    show(Audit({"shared": path_audit("shared", ideal(), 1e-5)}, 1e-5, 0, attacks), console)
    text = console.export_text()
    assert "0.800 to 1.000" in text
    assert f"{bits:.2f} of 8 bits" in text
    assert ("they show nothing here" in text) == words
