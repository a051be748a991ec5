"""Measuring a run that a real server and real nodes trained, over a grid in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_client import trainer
from fl_client.store import PersonalState, PersonalStore
from fl_core.config import RunConfig
from fl_core.errors import RunError
from fl_core.privacy import DpEvent, epsilon
from fl_core.shared import Arm, arm_sigmas, planned_steps
from fl_server.rounds import run_arms
from simulation.evaluate import _most_steps, evaluate
from simulation.report import write_report
from simulation.results import Results
from simulation.scores import base_scorer
from tests.fake_grid import Clock, FakeGrid
from tests.pretend_device import pretend_device
from tests.tiny_runs import NO_RECORDS, UNFEDERATED, USERS, answering_with, nodes_of, tiny_config

ARMS = "shared,local,dual,shared_dp,local_dp,dual_dp"
Folders = Callable[[str], Path]


def _run(config: RunConfig, folder: Path, out: Path) -> None:
    nodes = nodes_of(config, folder, out, 2)
    grid = FakeGrid({10 + place: answering_with(node) for place, node in enumerate(nodes)})
    run_arms(config, grid, out, timer=Clock().timer(), settle_seconds=0.0)


@pytest.fixture(scope="module")
def finished(
    tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path, Results]:
    """A run of all arms: its configuration, its folder and its measures."""
    config = tiny_config(tiny_model_folder, arms=ARMS, federation__rounds=3)
    out, folder = tmp_path_factory.mktemp("run"), tiny_population_folder("mixed")
    _run(config, folder, out)
    return config, out, evaluate(config, folder, out)


def test_every_arm_is_measured_on_both_test_sets(finished: tuple[RunConfig, Path, Results]) -> None:
    _, _, results = finished
    wanted = {"base", *ARMS.split(",")}
    assert set(results.arms) == set(results.arms_unseen) == wanted
    for name, _ in results.arm_items():
        arm = results.evaluated(name)
        assert arm.accuracy is not None and 0 <= arm.accuracy <= 1
        assert (arm.epsilon_record is not None) == name.endswith("_dp")
        assert arm.values_accuracy is not None
    assert results.references and results.population.federated_users == USERS - len(UNFEDERATED)
    assert set(results.seconds["train"]) == wanted - {"base"}
    assert results.bytes_per_user_round["dual"]["up"] > 0
    assert len(results.users["user_id"]) == USERS
    column = np.asarray(results.users["accuracy_dual"], dtype=float)
    assert np.isnan(column[NO_RECORDS]) and np.isfinite(column).sum() > USERS // 2


def test_the_report_is_written_from_it(finished: tuple[RunConfig, Path, Results], tmp_path: Path) -> None:
    files = write_report(finished[2], tmp_path)
    assert set(json.loads(files.json.read_text())["arms"]) == {"base", *ARMS.split(",")}
    assert "dual" in files.html.read_text()


def test_epsilon_counts_the_steps_that_were_made(finished: tuple[RunConfig, Path, Results]) -> None:
    config, out, results = finished
    for name in ("shared_dp", "local_dp", "dual_dp"):
        told, arm = results.privacy[name], Arm.named(name)
        shared, personal = planned_steps(config, arm)
        if name != "shared_dp":
            state = PersonalStore(out / "arms" / name / "personal").everyone()
            personal = int(state.personal_steps.max())
        assert (told["shared_steps"], told["personal_steps"]) == (shared, personal)
        sigmas, privacy = arm_sigmas(config, arm), config.privacy
        events = [
            DpEvent(privacy.sampling_rate, sigmas.shared, shared, privacy.clip, "shared"),
            DpEvent(privacy.sampling_rate, sigmas.personal, personal, privacy.clip, "personal"),
        ]
        fused = 0.0 if name == "shared_dp" else privacy.fusion_epsilon
        assert epsilon(events, privacy.delta) <= privacy.epsilon
        assert told["epsilon_record"] == max(epsilon(events, privacy.delta), fused)
        assert told["views"][-1]["epsilon"] == told["epsilon_record"]
        assert told["unit"] == "record" and "add or remove" in told["relation"]


def test_fewer_steps_cost_less_and_absence_is_not_divided_by_the_schedule(
    finished: tuple[RunConfig, Path, Results],
) -> None:
    given = finished[0]
    longer = given.federation.model_copy(update={"rounds": 8})
    trunk = given.privacy.model_copy(update={"trunk": True})  # the head alone has no schedule of texts
    config = given.model_copy(update={"federation": longer, "privacy": trunk})
    arm, zero = Arm.named("dual_dp"), np.zeros(1, dtype=np.int64)
    state = PersonalState.fresh(zero, np.zeros(2, dtype=np.float32))

    def most(shared: int, personal: int) -> tuple[int, int]:
        made = replace(state, shared_steps=zero + shared, personal_steps=zero + personal)
        return _most_steps(config, arm, made)

    assert config.text_shards == 2 and planned_steps(config, arm)[0] == 4
    assert most(8, 5) == (4, 5)  # in all rounds: each record in every second
    assert most(3, 5) == (3, 5)  # three rounds, which may all have been about one record
    assert most(0, 0) == (0, 0)
    config = given.model_copy(update={"federation": longer})
    assert planned_steps(config, arm)[0] == 8
    assert most(8, 5) == (8, 5)  # the head alone: each record in every round


def test_same_seed_same_figures(
    finished: tuple[RunConfig, Path, Results], tiny_population_folder: Folders, tmp_path: Path
) -> None:
    config, _, first = finished
    _run(config, tiny_population_folder("mixed"), tmp_path)
    second = evaluate(config, tiny_population_folder("mixed"), tmp_path)
    for name, arm in first.arm_items():
        assert arm.to_mapping() == second.evaluated(name).to_mapping(), name


def test_an_unfinished_arm_is_refused(
    tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path
) -> None:
    config, folder = tiny_config(tiny_model_folder, arms="dual"), tiny_population_folder("mixed")
    with pytest.raises(RunError, match=r"shared\.safetensors"):
        evaluate(config, folder, tmp_path)
    _run(config, folder, tmp_path)
    store = PersonalStore(tmp_path / "arms" / "dual" / "personal")
    (store.folder / "node-0000001.npz").unlink()
    with pytest.raises(RunError, match="6 of 12 users have personalised"):
        evaluate(config, folder, tmp_path)


@pytest.mark.parametrize("arms", ["dual,shared_dp", "local"])
def test_another_device_measures_the_same(
    finished: tuple[RunConfig, Path, Results],
    tiny_population_folder: Folders,
    monkeypatch: pytest.MonkeyPatch,
    arms: str,
) -> None:
    config, out, results = finished
    with pretend_device() as device:
        monkeypatch.setattr(trainer, "use_device", lambda name: device)
        again = evaluate(config.model_copy(update={"arms": arms}), tiny_population_folder("mixed"), out)
    for name in ("base", *arms.split(",")):
        assert again.evaluated(name).accuracy == results.evaluated(name).accuracy
        assert again.evaluated(name).values_accuracy == results.evaluated(name).values_accuracy


def test_base_log_probabilities_come_from_another_device(
    tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        tiny_model_folder, train__objective="sft", shared__kind="b_only", personal__kind="b_only",
        personal__targets="q_proj", personal__layers="top:1",
    )  # fmt: skip
    found = []
    for there in (False, True):
        with pretend_device() as device:
            if there:
                monkeypatch.setattr(trainer, "use_device", lambda name, device=device: device)
            (node,) = nodes_of(config, tiny_population_folder("mixed"), tmp_path, 1)
            found.append(base_scorer(node).scores)
    assert np.isfinite(found[0]).any()
    np.testing.assert_allclose(*found, rtol=1e-5)
