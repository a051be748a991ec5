"""Checkpoints: what comes back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_core.config import RunConfig, config_hash
from fl_core.errors import ConfigurationError, RunError
from fl_server.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from strategies.server_optimizer import OptimizerState


def _checkpoint() -> Checkpoint:
    rng = np.random.default_rng(0)
    moments = {"trunk.4.q_proj.B": rng.normal(size=(2, 3)) * 1e-12, "head.common": rng.normal(size=3)}
    arrays = {name: value.astype(np.float32) for name, value in moments.items()}
    return Checkpoint(7, arrays, OptimizerState(7, moments, {k: v**2 for k, v in moments.items()}), ())


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    config, saved = RunConfig(), _checkpoint()
    save_checkpoint(tmp_path / "c.safetensors", config, saved)
    found = load_checkpoint(tmp_path / "c.safetensors", config)
    assert found is not None and found.server_round == 7 and found.optimizer.step == 7
    for name in saved.arrays:
        assert found.arrays[name].dtype == np.float32
        assert found.arrays[name].tobytes() == saved.arrays[name].tobytes()
        assert found.optimizer.first[name].tobytes() == saved.optimizer.first[name].tobytes()
        assert found.optimizer.second[name].dtype == np.float64


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.safetensors", RunConfig()) is None


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, RunConfig(), _checkpoint())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"c\.safetensors.*cannot be read"):
        load_checkpoint(path, RunConfig())
    assert path.exists()


def test_other_settings_are_refused_but_for_those_that_change_no_arm(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, RunConfig(), _checkpoint())
    same = RunConfig(out=str(tmp_path), arms="shared,dual")
    assert load_checkpoint(path, same) is not None and config_hash(same) == config_hash(RunConfig())
    with pytest.raises(ConfigurationError, match="seed: 0 -> 4"):
        load_checkpoint(path, RunConfig(seed=4))
