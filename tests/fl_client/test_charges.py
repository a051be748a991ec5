"""What a node's work is charged as, and that the order holds in the real trainers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fl_client.charges import arm_budget, ledger_path, planned
from fl_client.trainer import NodeTrainer
from fl_core.errors import PrivacyError
from fl_core.ledger import Ledger, Round
from fl_core.noise import SystemNoise
from fl_core.privacy import epsilon, in_view
from fl_core.shared import Arm, Arrays, initial_shared
from fl_core.spending import Budget, Entry, spent, steps_charged, steps_made
from tests.tiny_runs import UNFEDERATED, USERS, finish_arm, nodes_of, tiny_config, train_rounds

Folders = Callable[[str], Path]
Make = Callable[..., NodeTrainer]

COHORT: dict[str, Any] = {"train__local_steps": 2, "train__inner_lr": 0.1}
BOTH = pytest.mark.parametrize("changes", [{}, COHORT], ids=["head", "cohort"])


@pytest.fixture
def make(tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path) -> Make:
    def node(out: str = "out", **changes: Any) -> NodeTrainer:
        config = tiny_config(tiny_model_folder, **{"arms": "shared_dp,local_dp,dual_dp,dual"} | changes)
        return nodes_of(config, tiny_population_folder("mixed"), tmp_path / out, 1)[0]

    return node


def ledger_of(node: NodeTrainer) -> Ledger:
    return Ledger(ledger_path(node.config, node.out, node.cohort.users))


def entries_of(node: NodeTrainer, arm: str) -> list[Entry]:
    return ledger_of(node).entries(arm=arm)


def _bytes(arrays: Arrays) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in arrays.items()}


@BOTH
@pytest.mark.parametrize("arm", ["shared_dp", "local_dp", "dual_dp"])
def test_a_whole_arm_charges_exactly_its_plan(make: Make, arm: str, changes: dict[str, Any]) -> None:
    node = make(**changes)
    config, kind = node.config, Arm.named(arm)
    finish_arm([node], arm, config.federation.rounds)
    entries, units = entries_of(node, arm), ledger_of(node).units()
    assert {entry.state for entry in entries} == {"released"}
    state = node.arm(arm).store.everyone()
    if kind.kind != "shared":
        committed = node.out / "arms" / arm / "personal" / entries[-1].artefact
        assert hashlib.sha256(committed.read_bytes()).hexdigest() == entries[-1].sha256
    if kind.kind != "local":
        assert np.array_equal(steps_charged(entries, USERS, "shared"), state.shared_steps)
        assert {entry.charge.users[list(UNFEDERATED)].any() for entry in entries[:1]} == {False}
    assert np.array_equal(steps_charged(entries, USERS, "personal"), state.personal_steps)
    plan = planned(config, kind)
    training = [event for event in plan if event.adapter != "fusion"]
    cost = epsilon(training, config.privacy.delta)
    fusion = config.privacy.fusion_epsilon if kind.kind != "shared" else 0.0
    assert spent(entries, units, "personal", config.privacy.delta) == max(cost, fusion)
    uploads = in_view(training, "server")
    own = [replace(e, steps=e.steps - config.train.final_steps) for e in training if e.adapter == "personal"]
    server = epsilon([*uploads, *own] if uploads else [], config.privacy.delta)
    assert spent(entries, units, "server", config.privacy.delta) == server
    assert cost <= arm_budget(config, kind).epsilon


def test_arms_without_privacy_charge_nothing(make: Make) -> None:
    node = make()
    finish_arm([node], "dual", 2)
    assert not (node.out / "ledger").exists()


def test_personal_scope_does_not_charge_uploads(make: Make) -> None:
    node = make(privacy__scope="personal", arms="local_dp,dual_dp")
    finish_arm([node], "dual_dp", 2)
    assert {entry.event.adapter for entry in entries_of(node, "dual_dp")} == {"personal", "fusion"}


@BOTH
def test_the_charge_is_on_the_disk_before_the_noise_is_drawn(make: Make, changes: dict[str, Any]) -> None:
    node, seen = make(**changes), []
    trainer = node.arm("dual_dp")
    drawn = trainer.noise

    class Watched(type(drawn)):  # type: ignore[misc]
        def normal(self, *arguments: Any) -> npt.NDArray[np.float32]:
            seen.append([entry.state for entry in entries_of(node, "dual_dp")])
            return drawn.normal(*arguments)

    trainer.noise = Watched(node.config.seed)
    shared = initial_shared(node.config, "dual_dp")
    node.train("dual_dp", 1, shared)
    assert seen and all(states == ["charged", "charged"] for states in seen)
    assert {entry.state for entry in entries_of(node, "dual_dp")} == {"released"}
    seen.clear()
    node.train("dual_dp", 1, shared)
    assert not seen, "a retry sends what was released, without training"


@BOTH
def test_a_retried_round_gives_the_reply_on_the_disk_even_where_noise_is_fresh(
    make: Make, changes: dict[str, Any]
) -> None:
    replies, shared = [], None
    for _ in range(2):
        node = make(**changes)
        node.arm("dual_dp").noise = SystemNoise()  # type: ignore[assignment]
        shared = shared or initial_shared(node.config, "dual_dp")
        replies += [node.train("dual_dp", 1, shared) for _ in range(2)]
    assert len({str(_bytes(arrays)) for arrays, _ in replies}) == 1
    assert len({count for _, count in replies}) == 1
    assert len(entries_of(node, "dual_dp")) == 2  # one upload, one personal


@BOTH
@pytest.mark.parametrize(("fresh", "rows"), [(True, 4), (False, 2)])
def test_a_crash_while_training_costs_again_only_with_fresh_noise(
    make: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], fresh: bool, rows: int
) -> None:
    node = make(**changes)
    trainer, shared = node.arm("dual_dp"), initial_shared(node.config, "dual_dp")
    if fresh:
        trainer.noise = SystemNoise()  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "record_round", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            node.train("dual_dp", 1, shared)
    assert {entry.state for entry in entries_of(node, "dual_dp")} == {"charged"}
    node.train("dual_dp", 1, shared)
    entries = entries_of(node, "dual_dp")
    assert len(entries) == rows and sum(entry.state == "released" for entry in entries) == 2


@BOTH
def test_users_without_budget_decline_and_freeze(make: Make, changes: dict[str, Any]) -> None:
    node = make(**changes)
    arm, shared = "dual_dp", initial_shared(node.config, "dual_dp")
    trainer, first = node.arm(arm), 3
    before = node.train(arm, 1, shared)[1]
    # The budgets of all but three users are spent: a charge outside the plan, at little noise.
    ledger = ledger_of(node)
    own = ledger.entries()[0]
    users = np.arange(USERS) >= first
    costly = replace(own.charge, event=replace(own.event, noise_multiplier=0.1), users=users)
    ledger.charge(Round(own.run, own.arm, 99), [costly], delta=1e-5, same_noise=False)
    trainer.ledger.budgets = (Budget("personal", 8.0, 1e-5, arm=arm),)
    state = trainer.load()
    _, after = node.train(arm, 2, shared)
    assert before == USERS - len(UNFEDERATED) and after == first
    kept = trainer.load()
    assert np.array_equal(kept.after[users], state.after[users])
    assert kept.shared_steps[users].max() == state.shared_steps.max()
    assert node.personalize(arm, 5, shared) == USERS
    final = trainer.load()
    assert np.array_equal(final.after[users], state.after[users]) and final.final
    assert np.abs(final.after[:first] - state.after[:first]).max() > 0
    trainer.ledger.budgets = (Budget("personal", 1e-6, 1e-5, arm=arm),)
    arrays, nobody = node.train(arm, 6, shared)
    assert nobody == 0 and not any(value.any() for name, value in arrays.items())


def test_retired_records_are_left_out(make: Make) -> None:
    node = make(privacy__record_steps=2)
    shared = initial_shared(node.config, "dual_dp")
    counts = [node.train("dual_dp", number, shared)[1] for number in (1, 2, 3)]
    assert counts == [USERS - len(UNFEDERATED)] * 2 + [0]
    entries, units = entries_of(node, "dual_dp"), ledger_of(node).units()
    assert steps_made(entries, units, "shared").max() == 2


@BOTH
def test_a_store_without_its_ledger_trains_no_further(make: Make, changes: dict[str, Any]) -> None:
    node = make(**changes)
    train_rounds([node], "dual_dp", 2)
    for path in (node.out / "ledger").iterdir():
        path.unlink()
    with pytest.raises(PrivacyError, match=r"the store has \d+ .* steps of a user, the ledger .* charged 0"):
        make(**changes).train("dual_dp", 3, initial_shared(node.config, "dual_dp"))


def test_a_device_has_one_ledger_for_all_its_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a first run has spent a second one does not get again."""
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    device = {"federation__users_per_node": 1, "privacy__noise": "system", "federation__rounds": 2}
    first, second = make("first", **device), make("second", **device)
    shared = initial_shared(first.config, "shared_dp")
    assert [first.train("shared_dp", server_round, shared)[1] > 0 for server_round in (1, 2)] == [True, True]
    assert [second.train("shared_dp", server_round, shared)[1] for server_round in (1, 2)] == [0, 0]
    ledger = Ledger(next((tmp_path / "home" / "ledger").glob("*.sqlite")))
    assert len({entry.run for entry in ledger.entries()}) == 1 and len(ledger.entries()) == 2


def test_a_limit_of_steps_is_each_arm_s_own(make: Make) -> None:
    node = make(privacy__record_steps=2)
    for arm in ("shared_dp", "dual_dp"):
        shared = initial_shared(node.config, arm)
        sent = [node.train(arm, server_round, shared)[1] > 0 for server_round in (1, 2, 3)]
        assert sent == [True, True, False], arm
