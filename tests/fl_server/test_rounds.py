"""Whole runs over a grid in this process: results, resume, progress, failures."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from safetensors.numpy import load_file

from fl_core.config import PrivacyConfig, RunConfig
from fl_core.errors import ConfigurationError, RunError
from fl_core.ledger import Ledger
from fl_core.privacy import epsilon, gaussian_epsilon
from fl_core.wire import Arrays, read_instruction, reply_content
from fl_server.rounds import run_arms
from tests.fake_grid import Clock, FakeGrid, config_of


def _initial(config: RunConfig, arm: str) -> Arrays:
    return {} if arm.startswith("local") else {"x": np.zeros(2, np.float32), "y": np.ones(3, np.float32)}


def _release(config: RunConfig, arm: str, arrays: Arrays, out: Path) -> Arrays:
    """What a server does to a noised adapter before it is released: here it adds 10 to y."""
    return {**arrays, "y": arrays["y"] + 10.0} if arm.endswith("_dp") else arrays


@dataclass
class _Node:
    """A node whose users pull the shared adapter towards ``goal``; remembers what it was asked."""

    goal: float
    users: int = 2
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    before_reply: Callable[[str, int], None] = lambda phase, number: None

    def __call__(self, message: Message) -> Message:
        shared, instruction = read_instruction(message.content)
        self.asked.append((instruction.arm, instruction.phase.value, instruction.server_round))
        self.before_reply(instruction.phase.value, instruction.server_round)
        if instruction.phase == "train.personalize":
            return Message(reply_content(self.users), reply_to=message)
        if not self.users:
            return Message(reply_content(0), reply_to=message)
        total = {k: (self.users * 0.5 * (self.goal - v)).astype(np.float32) for k, v in shared.items()}
        return Message(reply_content(self.users, total), reply_to=message)


def _run(config: RunConfig, nodes: list[_Node], out: Path, clock: Clock | None = None) -> FakeGrid:
    grid = FakeGrid({10 + i: node for i, node in enumerate(nodes)})
    run_arms(config, grid, out, _initial, (clock or Clock()).timer(), release=_release)
    return grid


def _config(arms: str = "dual", **federation: Any) -> RunConfig:
    return config_of(**federation).model_copy(update={"arms": arms})


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_trains_releases_and_personalises(tmp_path: Path) -> None:
    """Two equal goals of 1: after t rounds of half steps x is 1 - 2^-t, and y stays 1."""
    nodes = [_Node(1.0), _Node(1.0, users=3)]
    _run(_config(), nodes, tmp_path)
    released = load_file(tmp_path / "arms" / "dual" / "shared.safetensors")
    np.testing.assert_allclose(released["x"], 1 - 2**-3)
    np.testing.assert_allclose(released["y"], 1.0)
    rounds = _json(tmp_path / "arms" / "dual" / "rounds.json")
    assert [stats["users"] for stats in rounds["rounds"]] == [5, 5, 5]
    assert rounds["method"] == "components" and rounds["leaks_personal_weights"] == "false"
    assert _json(tmp_path / "arms" / "dual" / "personalized.json")["users"] == 5
    assert nodes[0].asked == [("dual", "train", r) for r in (1, 2, 3)] + [("dual", "train.personalize", 4)]


def test_each_arm_has_its_phases(tmp_path: Path) -> None:
    node = _Node(1.0)
    _run(_config("shared,local,dual_dp", rounds=1), [node], tmp_path)
    assert node.asked == [
        ("shared", "train", 1),
        ("local", "train.personalize", 1),
        ("dual_dp", "train", 1),
        ("dual_dp", "train.personalize", 2),
    ]
    assert not (tmp_path / "arms" / "local" / "shared.safetensors").exists()


def test_what_is_released_is_what_users_personalise_on(tmp_path: Path) -> None:
    got: dict[str, Any] = {}

    def node(message: Message) -> Message:
        shared, instruction = read_instruction(message.content)
        got[instruction.phase.value] = shared
        return _Node(1.0)(message)

    config = _config("dual_dp", rounds=1)
    run_arms(config, FakeGrid({5: node}), tmp_path, _initial, Clock().timer(), release=_release)
    released = load_file(tmp_path / "arms" / "dual_dp" / "shared.safetensors")
    np.testing.assert_allclose(released["y"], 11.0)
    np.testing.assert_allclose(got["train.personalize"]["y"], 11.0)
    np.testing.assert_allclose(got["train"]["y"], 1.0)  # rounds go on from what was trained


def test_progress_tells_where_the_run_stands(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    node = _Node(1.0, before_reply=lambda phase, number: seen.append(_json(tmp_path / "progress.json")))
    _run(_config("shared,dual"), [node], tmp_path)
    where = [(p["phase"], p["arm"], p["arm_index"], p["round"]) for p in seen]
    assert where == [
        *[("training", "shared", 0, r) for r in (0, 1, 2)],
        *[("training", "dual", 1, r) for r in (0, 1, 2)],
        ("personalising", "dual", 1, 3),
    ]
    last = _json(tmp_path / "progress.json")
    assert last["phase"] == "done" and last["arms"] == 2 and last["rounds"] == 3 and last["rejected"] == 0


class _Killed(BaseException):
    """Stands for the end of the process."""


def _killed_at(number: int) -> Callable[[str, int], None]:
    def before_reply(phase: str, server_round: int) -> None:
        if server_round == number:
            raise _Killed

    return before_reply


@pytest.mark.parametrize("server", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("number", [1, 3, 5, 6])
def test_a_killed_run_resumed_ends_as_an_unbroken_one(tmp_path: Path, server: str, number: int) -> None:
    config = _config(rounds=5, server=server, fraction=0.5)
    goals = [1.0, 2.0, 5.0, -3.0]
    _run(config, [_Node(goal) for goal in goals], tmp_path / "unbroken")
    with pytest.raises(_Killed):
        _run(config, [_Node(goal, before_reply=_killed_at(number)) for goal in goals], tmp_path / "broken")
    nodes = [_Node(goal) for goal in goals]
    _run(config, nodes, tmp_path / "broken")
    assert {asked[2] for node in nodes for asked in node.asked} == set(range(number, 7))
    one, two = (tmp_path / k / "arms" / "dual" / "shared.safetensors" for k in ("unbroken", "broken"))
    assert one.read_bytes() == two.read_bytes()
    assert len(_json(tmp_path / "broken" / "arms" / "dual" / "rounds.json")["rounds"]) == 5


def test_a_finished_run_asks_nobody_again(tmp_path: Path) -> None:
    _run(_config(), [_Node(1.0)], tmp_path)
    assert not _run(_config(), [_Node(1.0)], tmp_path).pushed


def test_other_settings_on_the_same_folder_are_refused_and_lose_nothing(tmp_path: Path) -> None:
    _run(_config(), [_Node(1.0)], tmp_path)
    path = tmp_path / "arms" / "dual" / "checkpoint.safetensors"
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"federation\.rounds: 3 -> 9"):
        _run(_config(rounds=9), [_Node(1.0)], tmp_path)
    assert path.read_bytes() == before
    assert _json(tmp_path / "progress.json")["phase"] == "failed"
    assert "federation.rounds" in _json(tmp_path / "progress.json")["error"]


def test_another_arm_may_be_added_on_the_same_folder(tmp_path: Path) -> None:
    _run(_config("dual"), [_Node(1.0)], tmp_path)
    node = _Node(1.0)
    _run(_config("dual,shared"), [node], tmp_path)
    assert {arm for arm, _, _ in node.asked} == {"shared"}


def test_too_few_valid_replies_repeat_the_round_with_another_sample(tmp_path: Path) -> None:
    nodes: list[Any] = [_Node(1.0) for _ in range(4)]
    broken = lambda message: Message(Error(2, "no"), reply_to=message)  # noqa: E731
    config = _config("shared", fraction=0.25, rounds=4)
    grid = FakeGrid({10: broken, **{11 + i: node for i, node in enumerate(nodes)}})
    run_arms(config, grid, tmp_path, _initial, Clock().timer())
    rounds = _json(tmp_path / "arms" / "shared" / "rounds.json")["rounds"]
    assert any(not stats["applied"] for stats in rounds), "the seed must draw the broken node once"
    assert [stats["round"] for stats in rounds if stats["applied"]] == [1, 2, 3, 4]


def test_a_round_that_nobody_answers_rightly_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def fails_in_round_2(message: Message) -> Message:
        _, instruction = read_instruction(message.content)
        if instruction.server_round == 2:
            return Message(Error(2, "shared.layers='top:99': the model has 6"), reply_to=message)
        return _Node(1.0)(message)

    with pytest.raises(RunError, match=r"round 2: 3 samples.*error': 1.*top:99"):
        run_arms(_config(), FakeGrid({5: fails_in_round_2}), tmp_path, _initial, Clock().timer())
    progress = _json(tmp_path / "progress.json")
    assert progress["phase"] == "failed" and "top:99" in progress["error"] and progress["round"] == 1
    rounds = _json(tmp_path / "arms" / "dual" / "rounds.json")["rounds"]
    assert [(s["round"], s["applied"]) for s in rounds] == [(1, True), (2, False), (2, False), (2, False)]
    node = _Node(1.0)
    run_arms(_config(), FakeGrid({5: node}), tmp_path, _initial, Clock().timer())
    assert node.asked[0] == ("dual", "train", 2)


def test_a_round_where_nobody_is_there_changes_nothing_and_goes_on(tmp_path: Path) -> None:
    def away_in_round_2(message: Message) -> Message:
        _, instruction = read_instruction(message.content)
        if instruction.server_round == 2 and instruction.phase == "train":
            return Message(reply_content(0), reply_to=message)
        return _Node(1.0)(message)

    run_arms(_config(), FakeGrid({5: away_in_round_2}), tmp_path, _initial, Clock().timer())
    np.testing.assert_allclose(load_file(tmp_path / "arms" / "dual" / "shared.safetensors")["x"], 0.75)


def test_a_node_that_fails_to_personalise_is_asked_again_alone(tmp_path: Path) -> None:
    calls: list[str] = []

    def second_time(message: Message) -> Message:
        _, instruction = read_instruction(message.content)
        if instruction.phase == "train.personalize":
            calls.append("asked")
            if len(calls) == 1:
                return Message(Error(2, "no"), reply_to=message)
        return _Node(1.0)(message)

    steady = _Node(1.0)
    grid = FakeGrid({5: second_time, 6: steady})
    run_arms(_config(), grid, tmp_path, _initial, Clock().timer())
    assert len(calls) == 2 and [a for a in steady.asked if a[1] == "train.personalize"] == [
        ("dual", "train.personalize", 4)
    ]


def test_a_node_that_never_personalises_fails_the_run_by_name(tmp_path: Path) -> None:
    def silent(message: Message) -> Message | None:
        _, instruction = read_instruction(message.content)
        return None if instruction.phase == "train.personalize" else _Node(1.0)(message)

    clock = Clock()
    with pytest.raises(RunError, match=r"1 of 2 nodes did not personalise.*no reply"):
        run_arms(
            _config(deadline_seconds=5),
            FakeGrid({5: silent, 6: _Node(1.0)}),
            tmp_path,
            _initial,
            clock.timer(),
        )
    assert 150 <= clock.seconds < 160
    assert (tmp_path / "arms" / "dual" / "shared.safetensors").exists()


def test_nothing_to_train_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="arms=''"):
        _run(_config(""), [_Node(1.0)], tmp_path)
    with pytest.raises(ConfigurationError, match=r"shared\.targets"):
        run_arms(_config("dual"), FakeGrid({5: _Node(1.0)}), tmp_path, lambda c, a: {}, Clock().timer())


def test_as_printed_labels_what_it_releases(tmp_path: Path) -> None:
    config = config_of("fdlora-as-printed", rounds=1)
    node = _Node(1.0)
    run_arms(config, FakeGrid({5: node}), tmp_path, _initial, Clock().timer())
    assert node.asked[0] == ("dual", "train.upload", 0)
    assert _json(tmp_path / "arms" / "dual" / "rounds.json")["leaks_personal_weights"] == "true"


def _devices(**privacy: Any) -> RunConfig:
    """A deployment: one user a node, the server's own noise from the system."""
    config = _config("shared_dp", users_per_node=1, minimum_nodes=1)
    settings = {
        "scope": "personal",
        "user_noise": 4.0,
        "user_clip": 0.1,
        "round_users": 2,
        "noise": "system",
        "participations": 2,
        **privacy,
    }
    return config.model_copy(update={"privacy": PrivacyConfig(**settings)})


def test_devices_are_asked_as_often_as_declared_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    nodes = [_Node(1.0, users=1), _Node(2.0, users=1)]
    with pytest.raises(RunError, match=r"privacy\.participations=2 of 90 days"):
        _run(_devices(), nodes, tmp_path / "out")
    assert [len(node.asked) for node in nodes] == [2, 2]
    again = [_Node(1.0, users=1), _Node(2.0, users=1)]
    with pytest.raises(RunError, match=r"0 of 2 nodes may still send"):
        _run(_devices(), again, tmp_path / "another run")
    assert not any(node.asked for node in again), "another run of the same server asked them again"


def test_each_noised_round_is_charged_on_the_server_s_ledger_and_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    config = _devices(participations=3)
    _run(config, [_Node(1.0, users=1), _Node(1.0, users=1)], tmp_path / "out")
    entries = Ledger(tmp_path / "out" / "ledger" / "server.sqlite").entries()
    assert [(e.server_round, e.state, e.event.unit) for e in entries] == [
        (server_round, "released", "user") for server_round in (1, 2, 3)
    ]
    spent = epsilon([entry.event for entry in entries], 1e-6)
    assert spent == pytest.approx(gaussian_epsilon(math.sqrt(3) / 4.0, 1e-6))
    again = tmp_path / "resumed"
    shutil.copytree(tmp_path / "out", again)
    _run(config, [], again)
    assert len(Ledger(again / "ledger" / "server.sqlite").entries()) == 3, "a finished run costs nothing"


def test_a_device_that_claims_to_host_several_users_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users' weight would double what it may change in the noised sum."""
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    config = _devices(participations=3)
    _run(config, [_Node(1.0, users=1), _Node(1.0, users=2)], tmp_path / "out")
    rounds = json.loads((tmp_path / "out" / "arms" / "shared_dp" / "rounds.json").read_text())["rounds"]
    assert [(row["users"], row["rejected"]) for row in rounds] == [(1, {"count": 1})] * 3


def test_a_round_in_which_nobody_sends_is_noised_and_released_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an adapter that did not move would say that the one user who was due stayed away."""
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    config = _devices(participations=3)
    away = config.model_copy(update={"federation": config.federation.model_copy(update={"minimum_nodes": 2})})
    _run(away, [_Node(1.0, users=0), _Node(1.0, users=0)], tmp_path / "out")
    moved = load_file(tmp_path / "out" / "arms" / "shared_dp" / "checkpoint.safetensors")
    start = _initial(config, "shared_dp")
    assert all(np.abs(moved[f"theta/{name}"] - value).min() > 0 for name, value in start.items())
    entries = Ledger(tmp_path / "out" / "ledger" / "server.sqlite").entries()
    assert [entry.state for entry in entries] == ["released"] * 3


def test_an_old_checkpoint_does_not_release_a_round_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    config, out, kept = _devices(participations=3), tmp_path / "out", tmp_path / "kept"
    checkpoint = out / "arms" / "shared_dp" / "checkpoint.safetensors"

    def keep(phase: str, number: int) -> None:
        if number == 2:
            shutil.copy(checkpoint, kept)

    _run(config, [_Node(1.0, users=1, before_reply=keep)], out)
    shutil.copy(kept, checkpoint)
    with pytest.raises(RunError, match=r"round 2: was released before"):
        _run(config, [_Node(1.0, users=1)], out)


def test_a_missing_denominator_is_found_before_anybody_is_asked(tmp_path: Path) -> None:
    nodes = [_Node(1.0, users=1)]
    with pytest.raises(ConfigurationError, match=r"privacy\.round-users"):
        _run(_devices(round_users=0), nodes, tmp_path / "out")
    assert not nodes[0].asked
