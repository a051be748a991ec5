"""What decides the dual arm's quality: one setting changed at a time, on validation records.

    python -m benchmarks.ablations --population POPULATION --out docs/ablations.json

Everything is trained in this process, without Flower.  Accuracy is over a user's held-out pairs,
then the mean over users; ``floor`` is the share of the values floor's public pairs that the worst
user's fused model orders rightly.  With ``--split unseen`` choose on a population that no result
is reported on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.in_process import train_arm
from fl_client.store import PersonalState
from fl_client.trainer import NodeTrainer
from fl_core.atomic import write_json
from fl_core.config import RunConfig, Scalar
from fl_core.records import Split
from fl_core.shared import Arrays
from simulation.held_out import held_out_pairs
from simulation.metrics import right, user_means
from simulation.scores import HeadScorer, arm_scorer

TRUNK = "q_proj,v_proj,o_proj,down_proj"
CHANGES: dict[str, dict[str, Scalar]] = {
    "as configured": {},
    "no prior on the shared head": {"federation.head-precision": 0.0},
    "no record at the prior": {"train.prior-share": 0.0},
    "no universal values": {"train.values-weight": 0.0, "train.personal-values": 0.0},
    "half the components": {},
    "LoRA in the top layer too": {"shared.targets": TRUNK, "shared.layers": "top:1"},
    "LoRA in the top two layers too": {"shared.targets": TRUNK, "shared.layers": "top:2"},
    "head reads the final state alone": {"train.pooling": "last-mean"},
}
PARTS = {"shared part": (1.0, 0.0), "dual, before fusion": (1.0, 1.0)}


def main() -> None:
    """Train every variant and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", type=Path, required=True, help="folder that `duet prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="base settings")
    parser.add_argument("--split", choices=("validation", "unseen"), default="validation")
    parser.add_argument("--only", nargs="*", choices=tuple(CHANGES), default=tuple(CHANGES))
    asked = parser.parse_args()
    base: dict[str, Scalar] = {"shared.targets": "", "federation.rounds": 60, "shared.components": 4}
    base |= dict(_setting(text) for text in asked.set)
    split, rows = Split[asked.split.upper()], []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            changes = dict(CHANGES[name])
            if name == "half the components":
                changes["shared.components"] = max(1, int(base["shared.components"]) // 2)
            config = RunConfig.from_flat({**base, **changes, "arms": "dual"})
            rows.append({"change": name, **_measured(config, asked.population, Path(folder), split)})
            print(json.dumps(rows[-1]), flush=True)
            write_json(asked.out, {"split": asked.split, "settings": base, "rows": rows})


def _setting(text: str) -> tuple[str, Scalar]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _measured(config: RunConfig, population: Path, folder: Path, split: Split) -> dict[str, Any]:
    started = time.monotonic()
    shutil.rmtree(folder / "arms", ignore_errors=True)  # but the file of features stays
    node, theta = train_arm(config, population, folder, "dual")
    state = node.arm("dual").store.everyone()
    found: dict[str, Any] = {}
    for name, weights in PARTS.items():
        mixed = np.tile(np.array([weights], dtype=np.float32), (len(state.user), 1))
        found[name] = _accuracy(node, theta, replace(state, fusion=mixed), split)
    found["dual"] = _accuracy(node, theta, state, split)
    return {**found, "floor": _floor(node, theta, state), "seconds": round(time.monotonic() - started)}


def _accuracy(node: NodeTrainer, theta: Arrays, state: PersonalState, split: Split) -> float:
    pairs = held_out_pairs(node.cohort.population, split, 400, node.config.seed)
    margins = arm_scorer(node, node.arm("dual"), theta, state).pairs(pairs)
    share: npt.NDArray[np.float64] = user_means(right(margins), pairs.user, len(node.cohort.users))
    return round(float(np.nanmean(share)), 4)


def _floor(node: NodeTrainer, theta: Arrays, state: PersonalState) -> float:
    scorer = arm_scorer(node, node.arm("dual"), theta, state)
    assert isinstance(scorer, HeadScorer)
    margins = replace(scorer, hidden=node.cohort.floor).values(len(node.cohort.users))
    return round(float((margins > 0).mean(axis=1).min()), 4)


if __name__ == "__main__":
    main()
