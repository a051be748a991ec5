"""One file a trained arm from which a killed server goes on: ``checkpoint.safetensors``.

It holds the shared adapter (float32, ``theta/<name>``), the server optimizer's moments
(float64, ``first/<name>``, ``second/<name>``) and, as metadata, the round, the rounds'
statistics and the configuration.  Sampling needs no state: it is a function of the seed, the
round and the attempt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fl_core.atomic import write_bytes
from fl_core.config import RunConfig, Scalar, compared_settings
from fl_core.errors import ConfigurationError, RunError
from fl_core.wire import Arrays
from strategies.base import RoundStats
from strategies.server_optimizer import OptimizerState

FORMAT = "duet-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """What a resumed arm needs: the adapter after ``server_round`` rounds, and how it came."""

    server_round: int
    arrays: Arrays
    optimizer: OptimizerState
    history: tuple[RoundStats, ...]


def save_checkpoint(path: Path, config: RunConfig, checkpoint: Checkpoint) -> None:
    """Write atomically; the previous checkpoint stands until the new one is on the disk."""
    tensors: dict[str, npt.NDArray[Any]] = {f"theta/{k}": v for k, v in checkpoint.arrays.items()}
    for group in ("first", "second"):
        moments = getattr(checkpoint.optimizer, group)
        tensors |= {f"{group}/{name}": value for name, value in moments.items()}
    metadata = {
        "format": FORMAT,
        "round": str(checkpoint.server_round),
        "step": str(checkpoint.optimizer.step),
        "history": json.dumps([asdict(stats) for stats in checkpoint.history]),
        "config": json.dumps(compared_settings(config)),
    }
    write_bytes(path, save(tensors, metadata))


def load_checkpoint(path: Path, config: RunConfig) -> Checkpoint | None:
    """The checkpoint at ``path``, or None where there is none.

    Raises ``ConfigurationError`` where it belongs to another configuration, ``RunError``
    where it cannot be read; neither removes anything.
    """
    if not path.exists():
        return None
    try:
        metadata, tensors = _read(path)
        stored: Mapping[str, Scalar] = json.loads(metadata["config"])
        checkpoint = Checkpoint(
            server_round=int(metadata["round"]),
            arrays=_group(tensors, "theta"),
            optimizer=OptimizerState(
                int(metadata["step"]), _group(tensors, "first"), _group(tensors, "second")
            ),
            history=tuple(RoundStats(**stats) for stats in json.loads(metadata["history"])),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"checkpoint {str(path)!r} cannot be read ({error}); remove it to train this arm anew"
        ) from error
    _check_same(path, stored, compared_settings(config))
    return checkpoint


def _read(path: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"format {metadata.get('format')!r} is not {FORMAT!r}")
        return metadata, {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _group(tensors: Mapping[str, npt.NDArray[Any]], group: str) -> dict[str, npt.NDArray[Any]]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _check_same(path: Path, stored: Mapping[str, Scalar], wanted: Mapping[str, Scalar]) -> None:
    changed = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)]
    if changed:
        shown = ", ".join(f"{key}: {stored.get(key)!r} -> {wanted.get(key)!r}" for key in changed[:5])
        raise ConfigurationError(
            f"{str(path)!r} belongs to a run with other settings ({shown}); "
            "give another 'out', restore the settings to resume, or remove the folder"
        )


def read_release(path: Path) -> Arrays:
    """The shared adapter that an arm released.

    Raises ``RunError`` where it is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"released adapter {str(path)!r} cannot be read ({error}); run the same command again"
        ) from error
