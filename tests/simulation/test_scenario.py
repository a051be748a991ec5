"""Defaults, scenario file and options become one configuration, in that order."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError
from simulation.scenario import ALL_ARMS, nested_options, read_scenario

FILE = """
source = "polis"
users = 7
dtype = "bfloat16"

[train]
inner-lr = 0.25

[privacy]
epsilon = 2.0

[world]
groups = 3
choice-noise = 0.1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(FILE)
    return path


def test_nothing_given_is_the_defaults_with_all_arms() -> None:
    scenario = read_scenario(None)
    assert scenario.config == RunConfig(arms=",".join(ALL_ARMS))
    assert scenario.tables == {}


def test_file_wins_over_defaults_and_options_over_the_file(file: Path) -> None:
    scenario = read_scenario(file, {"users": 9, "privacy": {"clip": 0.5}})
    config = scenario.config
    assert (config.population, config.users, config.dtype) == ("polis", 9, "bfloat16")
    assert config.train.inner_lr == 0.25
    assert (config.privacy.epsilon, config.privacy.clip) == (2.0, 0.5)
    assert config.federation == RunConfig().federation
    assert scenario.tables == {"world": {"groups": 3, "choice_noise": 0.1}}


def test_set_reads_numbers_truth_and_text() -> None:
    given = nested_options(
        ["train.inner-lr=0.1", "world.groups=3", "model=a/b", 'dtype="bfloat16"', "a.b=true"]
    )
    assert given == {
        "train": {"inner_lr": 0.1},
        "world": {"groups": 3},
        "model": "a/b",
        "dtype": "bfloat16",
        "a": {"b": True},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("userz = 3", r"userz: unknown setting; did you mean 'users'"),
        ("[train]\ninner-lrr = 1", r"train\.inner-lrr: unknown setting; did you mean 'train\.inner-lr'"),
        ("users = -1", r"users=-1: .*greater than or equal to 0"),
        ('arms = "dual,tripel"', "unknown arm 'tripel'"),
        ("world = 3", r"world=3: is a table"),
        ("users = ", "no valid TOML"),
        ("[privacy]\nepsilon = 0\n[train]\n", None),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    if message is None:
        assert read_scenario(path).config.arm_names == ("shared", "local", "dual"), "privacy is off"
        return
    with pytest.raises(ConfigurationError, match=message):
        read_scenario(path)


def test_private_arm_without_privacy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'dual_dp' needs a positive epsilon"):
        read_scenario(None, {"arms": "dual,dual_dp", "privacy": {"epsilon": 0.0}})


def test_missing_file_and_bare_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_scenario(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="write key=value"):
        nested_options(["users"])


def test_a_setting_is_not_a_table() -> None:
    with pytest.raises(ConfigurationError, match="train=3"):
        read_scenario(None, {"train": 3})
    with pytest.raises(ConfigurationError, match="users"):
        read_scenario(None, nested_options(["users.x=3"]))
    with pytest.raises(ConfigurationError, match="users"):
        nested_options(["users=3", "users.x=3"])
