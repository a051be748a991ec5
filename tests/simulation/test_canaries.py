"""Canaries are what the audit takes them for: known, orthogonal, clipped, and in the real code's hands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_client.trainer import NodeTrainer
from fl_core.base_model import BaseModel, load_base
from fl_core.config import RunConfig
from fl_core.noise import SimulationNoise
from fl_core.privacy import epsilon
from fl_core.records import Split
from fl_core.shared import Arm, arm_sigmas, planned_steps
from simulation.canaries import (
    ARM,
    BEYOND,
    HeadUsers,
    Observed,
    Silent,
    cohort_observed,
    cohort_setup,
    coins,
    head_config,
    head_features,
    head_population,
    norm_error,
)

USERS, EACH = 3, 40


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> BaseModel:
    return load_base(str(tiny_model_folder), "float32")


@pytest.fixture(scope="module")
def config(tiny_model_folder: Path) -> RunConfig:
    return RunConfig.from_flat(
        {
            "model": str(tiny_model_folder),
            "privacy.sampling-rate": 0.3,
            "federation.rounds": 4,
            "train.final-steps": 7,
        }
    )


@pytest.fixture(scope="module")
def paths(
    config: RunConfig, base: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Observed]:
    made, out = head_config(config, EACH, USERS), tmp_path_factory.mktemp("head")
    return HeadUsers(made, coins(0, USERS, EACH), out, base).observed()


def test_what_the_guarantee_rests_on_is_not_changed(config: RunConfig) -> None:
    made = head_config(config, EACH, USERS)
    for name in ("epsilon", "delta", "sampling_rate", "clip", "personal_share"):
        assert getattr(made.privacy, name) == getattr(config.privacy, name)
    assert made.federation == config.federation
    assert made.train.expected_batch == config.train.expected_batch


def test_directions_are_orthonormal_and_beyond_the_clip() -> None:
    frozen, directions = head_features(EACH, 0.25, 1)
    assert torch.allclose(directions @ directions.T, torch.eye(EACH), atol=1e-5)
    gradient = 0.5 * (frozen.phi[:-1] - frozen.phi[-1]) / EACH**0.5
    assert torch.allclose(gradient, BEYOND * 0.25 * directions, atol=1e-4)


def test_left_out_canaries_are_in_no_record() -> None:
    included = coins(3, USERS, EACH)
    records = head_population(included).records
    assert np.all(records.split == Split.TRAIN)
    assert included[records.user, records.chosen].all()
    assert len(records) == included.sum()


def test_both_paths_declare_together_what_is_configured(
    config: RunConfig, paths: dict[str, Observed]
) -> None:
    made = head_config(config, EACH, USERS)
    events = [observed.event for observed in paths.values()]
    assert [event.adapter for event in events] == ["shared", "personal"]
    assert tuple(event.steps for event in events) == planned_steps(made, Arm.named(ARM)) == (4, 4)
    sigmas = arm_sigmas(made, Arm.named(ARM))
    assert tuple(event.noise_multiplier for event in events) == (sigmas.shared, sigmas.personal)
    assert 0.9 * config.privacy.epsilon < epsilon(events, config.privacy.delta) <= config.privacy.epsilon


@pytest.mark.parametrize("path", ["shared", "personal"])
def test_contributions_are_zero_or_the_clip(path: str, paths: dict[str, Observed]) -> None:
    found = paths[path]
    taken = np.round(found.contributions)
    assert np.allclose(found.contributions, taken, atol=1e-4)
    assert set(np.unique(taken)) == {0.0, 1.0}
    assert not taken[:, ~found.included].any()
    assert taken[:, found.included].mean() == pytest.approx(0.3, abs=0.12)


def test_paths_are_sampled_apart(paths: dict[str, Observed]) -> None:
    """A record that trains one adapter in a round need not train the other."""
    shared, personal = (np.round(paths[name].contributions) for name in ("shared", "personal"))
    assert np.any(shared != personal)


@pytest.mark.parametrize("path", ["shared", "personal"])
def test_scores_are_contributions_and_the_arms_own_noise(path: str, paths: dict[str, Observed]) -> None:
    found = paths[path]
    noise = found.scores - found.contributions
    assert noise.std() == pytest.approx(found.event.noise_multiplier, rel=0.15)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5, "new in each step"


def test_shared_noise_is_what_the_noise_source_gives(
    config: RunConfig, base: BaseModel, paths: dict[str, Observed]
) -> None:
    """Built anew from the key: user 1, round 2."""
    made = head_config(config, EACH, USERS)
    _, directions = head_features(EACH, made.privacy.clip, made.seed)
    numbers = SimulationNoise(made.seed).normal((EACH + 1,), 1, 2, 0, 0)
    expected = paths["shared"].event.noise_multiplier * (directions @ torch.from_numpy(numbers[:EACH]))
    # The upload is -(sum + noise) / L, and a canary's gradient points away from its direction.
    found = paths["shared"].scores[1, 1] - paths["shared"].contributions[1, 1]
    assert np.allclose(found, -expected.numpy(), atol=1e-3)


def test_the_arms_are_those_that_a_node_trains(config: RunConfig, tmp_path: Path, base: BaseModel) -> None:
    """The same class as ``NodeTrainer`` builds for these settings."""
    made = head_config(config, 4, 2)
    head_population(coins(0, 2, 4)).save(tmp_path / "population")
    node = NodeTrainer(made, tmp_path / "population", tmp_path, 0, 2)
    assert type(node.arm(ARM)).__name__ == "HeadArm"


def test_silent_noise_keeps_the_samples() -> None:
    key = (1, 2, 3, 4)
    assert not Silent(5).normal((8,), *key).any()
    assert np.array_equal(Silent(5).uniform((8,), *key), SimulationNoise(5).uniform((8,), *key))


# The cohort engine -----------------------------------------------------------------------


def test_cohort_directions_see_their_own_canary_alone(config: RunConfig, base: BaseModel) -> None:
    setup = cohort_setup(config, base, 24, 0)
    included = np.eye(2, 24, dtype=bool) | (np.arange(24) == 9)
    found = cohort_observed(config.model_copy(update={"seed": 2}), setup, included)
    relative = found.contributions / found.strength
    assert np.allclose(relative, np.round(relative), atol=1e-3)
    assert not relative[:, ~included].round().any()
    assert relative.round().any()
    assert np.all((found.strength > 0) & (found.strength <= 1 + 1e-6))


def test_gradients_do_not_depend_on_the_batch(config: RunConfig, base: BaseModel) -> None:
    assert norm_error(cohort_setup(config, base, 20, 0), batch=7) < 1e-4
