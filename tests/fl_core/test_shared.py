"""What server and nodes build alike: an arm's parts, its steps, its noise, its first adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_core.base_model import load_base
from fl_core.calibration import Sigmas
from fl_core.config import RunConfig
from fl_core.errors import AdapterError, ConfigurationError, ModelError, PrivacyError
from fl_core.features import FeatureMap
from fl_core.privacy import DpEvent, epsilon
from fl_core.shared import (
    Arm,
    arm_sigmas,
    arm_specs,
    build_arm,
    from_arrays,
    head_alone,
    initial_shared,
    planned_steps,
    text_shards,
    to_arrays,
)
from tests.tiny_runs import tiny_config


def test_an_arm_s_name_says_its_parts() -> None:
    assert Arm.named("dual_dp") == Arm("dual_dp", "dual", True)
    assert Arm.named("local") == Arm("local", "local", False)


@pytest.mark.parametrize(
    ("arm", "kinds"),
    [
        ("shared", ("b_only", None)),
        ("local", ("b_only", "subspace")),
        ("shared_dp", ("b_only", None)),
        ("dual_dp", ("components", "components")),
    ],
)
def test_specifications_of_each_arm(tiny_model_folder: Path, arm: str, kinds: tuple[str, Any]) -> None:
    config = tiny_config(tiny_model_folder)
    shared, personal = arm_specs(config, Arm.named(arm))
    assert (shared.kind, personal.kind if personal else None) == kinds
    assert bool(shared.target_names) == (arm == "shared")


@pytest.mark.parametrize("arm", ["shared_dp", "dual_dp"])
def test_a_private_arm_trains_the_head_alone_unless_asked_for_more(tiny_model_folder: Path, arm: str) -> None:
    named, targets = Arm.named(arm), ("q_proj", "down_proj")
    alone = tiny_config(tiny_model_folder)
    assert head_alone(alone, named) and text_shards(alone, named) == 1
    assert arm_specs(alone, named)[0].target_names == ()
    assert {name.split(".")[0] for name in initial_shared(alone, arm)} == {"head"}
    assert not head_alone(alone, Arm.named(arm.removesuffix("_dp")))
    # Each of these is trained with the trunk's layers, whatever the reason.
    public_uploads = {"privacy__scope": "personal", "arms": "dual_dp"}
    for changes in ({"privacy__trunk": True}, public_uploads, {"train__local_steps": 2}):
        config = tiny_config(tiny_model_folder, **changes)
        assert not head_alone(config, named)
        assert text_shards(config, named) == config.text_shards
        assert arm_specs(config, named)[0].target_names == targets
        assert any(name.startswith("trunk.") for name in initial_shared(config, arm))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # rounds, shards, local, personal, final -> (shared, dual, local)
        ((5, 2, 1, 3, 4), ((3, 0), (3, 3 * 3 + 4), (0, 4))),
        ((4, 4, 1, 0, 7), ((1, 0), (1, 7), (0, 7))),
        # Several local steps need passes of each user's own: no schedule of texts.
        ((5, 2, 6, 1, 4), ((30, 0), (30, 9), (0, 4))),
        ((0, 3, 1, 1, 2), ((0, 0), (0, 2), (0, 2))),
    ],
)
def test_planned_steps_by_hand(changes: tuple[int, ...], expected: tuple[tuple[int, int], ...]) -> None:
    inner = ("text-shards", "local-steps", "personal-steps", "final-steps")
    names = ("federation.rounds", *(f"train.{name}" for name in inner))
    config = RunConfig.from_flat({"shared.targets": "q_proj", **dict(zip(names, changes, strict=True))})
    assert tuple(planned_steps(config, Arm.named(arm)) for arm in ("shared", "dual", "local")) == expected


def test_noise_only_where_an_arm_is_private() -> None:
    config = RunConfig()
    assert arm_sigmas(config, Arm.named("dual")) == Sigmas(0.0, 0.0)
    both, alone = arm_sigmas(config, Arm.named("dual_dp")), arm_sigmas(config, Arm.named("shared_dp"))
    assert both.shared > alone.shared > 0 and both.personal > 0
    without = RunConfig.from_flat({"privacy.epsilon": 0.0})
    with pytest.raises(PrivacyError, match=r"epsilon=0; set a target"):
        arm_sigmas(without, Arm.named("dual_dp"))


@pytest.mark.parametrize("arm", ["local_dp", "dual_dp"])
def test_where_uploads_are_public_the_whole_budget_is_the_personal_steps(arm: str) -> None:
    config = RunConfig.from_flat({"privacy.scope": "personal", "arms": arm})
    named, privacy = Arm.named(arm), config.privacy
    sigmas, (_, personal) = arm_sigmas(config, named), planned_steps(config, named)
    assert sigmas.shared == 0.0 and personal > 0
    spent = epsilon(
        [DpEvent(privacy.sampling_rate, sigmas.personal, personal, privacy.clip, "personal")], privacy.delta
    )
    assert 0.97 * privacy.epsilon < spent <= privacy.epsilon
    if arm == "dual_dp":  # the same steps with a quarter of the budget need more noise
        assert sigmas.personal < arm_sigmas(RunConfig.from_flat({"arms": arm}), named).personal


def test_a_shared_private_arm_without_private_uploads_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing private in arm 'shared_dp'"):
        RunConfig.from_flat({"privacy.scope": "personal", "arms": "dual_dp,shared_dp"})
    assert RunConfig.from_flat({"privacy.scope": "both", "arms": "dual_dp,shared_dp"}).arm_names


@pytest.mark.parametrize("arm", ["shared", "local", "dual"])
def test_the_first_adapter_is_a_function_of_the_seed_and_adds_nothing(
    tiny_model_folder: Path, arm: str
) -> None:
    config = tiny_config(tiny_model_folder)
    first, again = initial_shared(config, arm), initial_shared(config, arm)
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in again.items()}
    assert all(value.dtype == np.float32 for value in first.values())
    assert not any(value.any() for name, value in first.items() if name != "head.components")
    if arm == "dual":
        other = initial_shared(tiny_config(tiny_model_folder, seed=1), arm)
        assert not np.array_equal(first["head.components"], other["head.components"])
        assert first["head.components"].shape == (3, 120)  # last token, and means at four depths


def test_server_and_nodes_agree_on_the_layout_with_and_without_features(tiny_model_folder: Path) -> None:
    config = tiny_config(tiny_model_folder)
    base = load_base(config.model)
    fitted = FeatureMap.plain(24, "layers", 4).fitted(torch.randn(60, 120))
    for arm in ("shared", "local", "dual", "dual_dp"):
        _, plain = build_arm(config, Arm.named(arm), base)
        _, whitened = build_arm(config, Arm.named(arm), base, fitted)
        assert plain.shared_layout == whitened.shared_layout
        assert plain.personal_layout == whitened.personal_layout


def test_arrays_and_vectors_are_inverse_and_checked(tiny_model_folder: Path) -> None:
    config = tiny_config(tiny_model_folder)
    _, adapter = build_arm(config, Arm.named("dual"), load_base(config.model))
    flat = torch.randn(adapter.shared_layout.size)
    arrays = to_arrays(adapter.shared_layout, flat)
    assert torch.equal(from_arrays(adapter.shared_layout, arrays), flat)
    with pytest.raises(AdapterError, match="differ"):
        from_arrays(adapter.shared_layout, {"head.bias": arrays["head.bias"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared__targets": "c_attn"}, "no such linear module"),
        ({"shared__layers": "7"}, "the model has 3 layers"),
    ],
)
def test_layers_that_do_not_match_are_named(
    tiny_model_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        initial_shared(tiny_config(tiny_model_folder, **changes), "dual")


def test_a_personal_adapter_in_the_trunk_needs_passes_of_each_user_s_own() -> None:
    own = {"personal.kind": "subspace", "personal.targets": "q_proj"}
    assert RunConfig().shares_texts
    assert not RunConfig.from_flat(own).shares_texts
    assert not RunConfig.from_flat({"local.targets": "q_proj"}).shares_texts
    assert not RunConfig.from_flat({"shared.component-trunk": True}).shares_texts
