"""User-level privacy on the node: each user's upload is bounded, and sent so often and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_client.trainer import NodeTrainer
from fl_core.errors import ConfigurationError
from fl_core.shared import Arm, initial_shared, planned_steps
from fl_core.wire import Arrays, Phase, norm
from tests.tiny_runs import UNFEDERATED, USERS, nodes_of, sum_of, tiny_config

Folders = Callable[[str], Path]
Make = Callable[..., list[NodeTrainer]]

CLIP = 1e-3
EACH_ROUND: dict[str, Any] = {"privacy__participations": 24, "federation__rounds": 4}
COHORT: dict[str, Any] = {"train__local_steps": 2, "train__inner_lr": 0.1}
BOUNDED: dict[str, Any] = {"privacy__user_noise": 4.0, "privacy__user_clip": CLIP, "privacy__round_users": 5}


@pytest.fixture
def make(tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path) -> Make:
    """Nodes of a run whose release is private for users."""

    def nodes(out: str = "out", count: int = 1, **changes: Any) -> list[NodeTrainer]:
        config = tiny_config(tiny_model_folder, **{**BOUNDED, "privacy__scope": "personal", **changes})
        return nodes_of(config, tiny_population_folder("mixed"), tmp_path / out, count)

    return nodes


def _moved(node: NodeTrainer, arm: str) -> Arrays:
    generator = np.random.default_rng(0)
    start = initial_shared(node.config, arm)
    return {k: (v + 0.3 * generator.standard_normal(v.shape)).astype(np.float32) for k, v in start.items()}


@pytest.mark.parametrize("arm", ["shared_dp", "dual_dp"])
@pytest.mark.parametrize(
    "changes", [{}, COHORT, {"privacy__scope": "both"}], ids=["head", "cohort", "noised uploads"]
)
def test_a_node_s_sum_is_that_of_its_users_uploads_each_of_bounded_norm(
    make: Make, arm: str, changes: dict[str, Any]
) -> None:
    """A node that hosts many users is what the server would make of a device a user."""
    changes = {**EACH_ROUND, **changes}
    (whole,), single = make("whole", **changes), make("single", count=USERS, **changes)
    shared, uploads = _moved(whole, arm), []
    for node in single:
        upload, count = node.train(arm, 1, shared)
        if count:
            uploads.append(upload)
    assert len(uploads) == USERS - len(UNFEDERATED)
    norms = [norm(upload) for upload in uploads]
    assert max(norms) <= CLIP * (1 + 1e-5) and np.median(norms) > 0.99 * CLIP, "the clip does nothing here"
    total, users = sum_of([whole], arm, 1, shared)
    assert users == len(uploads)
    for name, value in total.items():
        np.testing.assert_allclose(value, np.sum([upload[name] for upload in uploads], axis=0), atol=1e-6)


@pytest.mark.parametrize("changes", [{}, COHORT], ids=["head", "cohort"])
def test_a_user_sends_in_no_more_rounds_than_declared(make: Make, changes: dict[str, Any]) -> None:
    rounds, most = 7, 3
    (node,) = make(federation__rounds=rounds, privacy__participations=most, **changes)
    shared, sent = initial_shared(node.config, "dual_dp"), []
    for server_round in range(1, rounds + 1):
        sent.append(node.train("dual_dp", server_round, shared)[1])
    steps = node.arm("dual_dp").store.everyone().shared_steps // node.config.train.local_steps
    assert 0 < steps.max() <= most
    assert sum(sent) == steps.sum() and max(sent) < USERS - len(UNFEDERATED), "all send at once"
    assert planned_steps(node.config, Arm.named("dual_dp"))[0] == most * node.config.train.local_steps


def test_a_device_counts_its_own_participations(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks again, in this run or the next, gets no more than it was declared to get."""
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    devices = {"federation__users_per_node": 1, "privacy__noise": "system"}
    settings = {"count": USERS, "federation__rounds": 9, "privacy__participations": 3, **devices}
    device, *_ = make(**settings)
    shared = initial_shared(device.config, "shared_dp")
    sent = [device.train("shared_dp", server_round, shared)[1] for server_round in (1, 2, 2)]
    assert sent == [1, 1, 1], "a round that is asked for again is one participation"
    assert device.users_in("shared_dp", Phase.TRAIN, 2) == 1
    later, *_ = make("later", **settings)
    sent = [later.train("shared_dp", server_round, shared)[1] for server_round in (1, 2, 3)]
    assert sent == [1, 0, 0]


def test_layers_of_the_trunk_are_refused_where_no_user_s_update_is_known_alone(make: Make) -> None:
    (node,) = make(privacy__trunk=True)
    with pytest.raises(ConfigurationError, match=r"privacy\.trunk=false"):
        node.arm("dual_dp")


@pytest.mark.parametrize("arm", ["shared_dp", "dual_dp"])
def test_single_users_sums_are_what_one_pass_over_all_of_them_adds_up(make: Make, arm: str) -> None:
    changes = {**EACH_ROUND, "privacy__user_clip": 1e6}
    (bounded,), (plain,) = make("bounded", **changes), make("plain", **changes)
    plain.arm(arm).user_clip = None  # the path of all other arms
    shared = _moved(bounded, arm)
    total, _ = bounded.train(arm, 1, shared)
    wanted, _ = plain.train(arm, 1, shared)
    for name, value in wanted.items():
        np.testing.assert_allclose(total[name], value, atol=1e-5 * max(1.0, float(np.abs(value).max())))
