"""The house rules: who imports whom, one home for defaults, what is packaged and what is bundled."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fl_core.config import RunConfig
from simulation.cli import app

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "fl_core": frozenset(),
    "fl_client": frozenset({"fl_core"}),
    "strategies": frozenset({"fl_core"}),
    "fl_server": frozenset({"fl_core", "strategies"}),
    "simulation": frozenset({"fl_core", "fl_client", "strategies", "fl_server"}),
    "deploy": frozenset({"fl_core", "fl_client", "strategies", "fl_server"}),
    "benchmarks": frozenset({"fl_core", "fl_client", "strategies", "fl_server", "simulation"}),
}
"""Arrows beside those inside a room.  Nothing may import simulation (but benchmarks do)."""

ROOMS = tuple(MAY_IMPORT)
PACKAGES = ("fl_core", "fl_client", "fl_server", "strategies", "simulation", "benchmarks")


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of a room, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("__import__", "import_module", "importlib.import_module"):
                names = [str(node.args[0].value)]
        for name in names:
            if (room := name.partition(".")[0]) in ROOMS:
                yield node.lineno, room


def wrong_arrows(room: str, name: str, source: str) -> list[str]:
    allowed = MAY_IMPORT[room] | {room}
    return [
        f"{name}:{line}: {room} imports {other}"
        for line, other in imported_rooms(source)
        if other not in allowed
    ]


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    found = [
        arrow
        for path in sources(room)
        for arrow in wrong_arrows(room, str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("fl_core", "import strategies.base"),
        ("fl_core", "from simulation import world"),
        ("fl_client", "def late():\n    from fl_server.rounds import run_arms"),
        ("strategies", "if TYPE_CHECKING:\n    import fl_client.store as store"),
        ("fl_server", "import importlib\nimportlib.import_module('simulation.run')"),
        ("simulation", "import deploy"),
    ],
)
def test_checker_catches_a_wrong_arrow(room: str, source: str) -> None:
    assert len(wrong_arrows(room, "made_up.py", source)) == 1


def test_checker_lets_right_arrows_pass() -> None:
    assert (
        wrong_arrows("fl_server", "made_up.py", "import numpy\nfrom strategies import base\nimport fl_core")
        == []
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_init_holds_a_docstring_only(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("package", ["fl_core", "strategies"])
def test_only_the_wire_knows_flower_in_the_core(package: str) -> None:
    """fl_core imports Flower in wire.py alone; strategies import no torch."""
    forbidden = {"fl_core": "flwr", "strategies": "torch"}[package]
    pattern = re.compile(rf"^\s*(from|import) {forbidden}\b", re.MULTILINE)
    found = [path.name for path in sources(package) if pattern.search(path.read_text(encoding="utf-8"))]
    assert found == (["wire.py"] if package == "fl_core" else [])


def test_flower_defaults_are_the_configurations() -> None:
    """Flower takes only keys that stand in pyproject.toml; the home of defaults is RunConfig."""
    config = PYPROJECT["tool"]["flwr"]["app"]["config"]
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            {f"{key}.{name}": item for name, item in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    expected = RunConfig().to_flat()
    block = "\n".join(f"{key} = {json.dumps(value)}" for key, value in expected.items())
    assert flat == expected, f"[tool.flwr.app.config] in pyproject.toml must be\n{block}"
    assert {key: type(value) for key, value in flat.items()} == {k: type(v) for k, v in expected.items()}


def test_every_package_is_listed_and_typed() -> None:
    found = sorted(
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for room in PACKAGES
        for path in (ROOT / room).rglob("__init__.py")
    )
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == found
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
        folders = {path.parent for path in sources(package)}
        assert all((folder / "__init__.py").is_file() for folder in folders), package


def test_constraints_satisfy_the_requirements() -> None:
    from packaging.requirements import Requirement

    pinned = dict(
        line.strip().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    names = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    project = PYPROJECT["project"]
    for text in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        assert requirement.specifier.contains(names[requirement.name.lower()]), text
    assert names["torch"] == "2.13.0"


def test_sources_are_registered() -> None:
    from simulation.sources import SOURCES

    points = {p.name: p.value for p in importlib.metadata.entry_points(group="duet.populations")}
    assert points == {name: f"simulation.sources:{name}" for name in SOURCES}


def test_readme_names_every_top_level_entry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode or not tracked.stdout:
        pytest.skip("not a git checkout")
    entries = {line.split("/")[0] + ("/" if "/" in line else "") for line in tracked.stdout.splitlines()}
    rows = set(
        re.findall(r"^\| `([^`]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert entries - rows == set(), "add these to the table in README.md"
    assert {row for row in rows if not (ROOT / row).exists()} == set(), "README.md names what is not there"


def test_what_the_privacy_page_names_exists() -> None:
    """Each test file of its table, given in full or beside the one before it, and each module of ours."""
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    folder, missing = "", []
    for name in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", text):
        folder = str(Path(name).parent) if "/" in name else folder
        if not (ROOT / folder / Path(name).name).is_file():
            missing.append(name)
    for name in re.findall(r"`((?:fl_core|fl_client|fl_server|strategies|simulation)\.\w+)", text):
        path = ROOT.joinpath(*name.split("."))
        missing += [] if path.with_suffix(".py").is_file() or path.is_dir() else [name]
    assert not missing


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for sub, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {sub}")


COMMANDS = dict(commands(typer.main.get_command(app), "duet"))
for plugged in importlib.metadata.entry_points(group="duet.commands"):
    COMMANDS |= commands(typer.main.get_command(plugged.load()), f"duet {plugged.name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    """Arguments are named in the command's own text: click 8.5 loses the help that typer gives them."""
    command = COMMANDS[name]
    assert command.help, name
    for parameter in command.params:
        named = isinstance(parameter, click.Argument) and str(parameter.name).upper() in command.help
        assert named or getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; import simulation.cli; "
        "print([name for name in ('torch', 'flwr', 'ray', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_bundle_holds_the_components_and_no_more(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    bundle = tmp_path / "duet.fab"
    bundle.write_bytes(build_fab_from_disk(ROOT))
    assert bundle.stat().st_size < 10 * 2**20 / 5, "far below Flower's 10 MB"
    names = zipfile.ZipFile(bundle).namelist()
    for component in PYPROJECT["tool"]["flwr"]["app"]["components"].values():
        assert component.partition(":")[0].replace(".", "/") + ".py" in names
    bundled = set(PACKAGES) - {"simulation", "benchmarks"}
    for package in bundled:
        assert {str(path.relative_to(ROOT)) for path in sources(package)} <= set(names), package
    tops = {name.split("/")[0] for name in names}
    assert tops == bundled | {"pyproject.toml", "LICENSE", ".info"}


def test_bundle_alone_can_be_imported(tmp_path: Path) -> None:
    """With the bundle first on the path, as Flower has it, both components are found in it."""
    from flwr.cli.build import build_fab_from_disk

    bundle = tmp_path / "duet.fab"
    bundle.write_bytes(build_fab_from_disk(ROOT))
    zipfile.ZipFile(bundle).extractall(tmp_path / "bundle")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'bundle')!r}); "
        "import fl_server.app, fl_client.app; print(fl_server.app.__file__, fl_client.app.__file__)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(tmp_path / "bundle")) for path in shown.stdout.split())
