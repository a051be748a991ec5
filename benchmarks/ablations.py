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

from benchmarks.in_process import user_accuracies
from fl_client.store import PersonalState
from fl_client.trainer import NodeTrainer
from fl_core.atomic import write_json
from fl_core.config import RunConfig
from fl_core.records import Split
from fl_core.shared import Arrays
from simulation.in_process import train_arm
from simulation.scenario import nested_options, read_scenario
from simulation.scores import HeadScorer, arm_scorer

TRUNK = "q_proj,v_proj,o_proj,down_proj"
BASE = ("shared.targets=", "shared.components=4", "federation.rounds=60")
CHANGES: dict[str, tuple[str, ...]] = {
    "as configured": (),
    "no prior on the shared head": ("federation.head-precision=0",),
    "no record at the prior": ("train.prior-share=0",),
    "no universal values": ("train.values-weight=0", "train.personal-values=0"),
    "two components": ("shared.components=2",),
    "LoRA in the top layer too": (f"shared.targets={TRUNK}", "shared.layers=top:1"),
    "LoRA in the top two layers too": (f"shared.targets={TRUNK}", "shared.layers=top:2"),
    "head reads the final state alone": ("train.pooling=last-mean",),
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
    base, rows = (*BASE, *asked.set), []
    split = Split[asked.split.upper()]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            options = nested_options([*base, *CHANGES[name], "arms=dual"])
            config = read_scenario(None, options).config
            rows.append({"change": name, **_measured(config, asked.population, Path(folder), split)})
            print(json.dumps(rows[-1]), flush=True)
            write_json(asked.out, {"split": asked.split, "settings": base, "rows": rows})


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
    return round(float(np.nanmean(user_accuracies(node, "dual", theta, state, split, 400))), 4)


def _floor(node: NodeTrainer, theta: Arrays, state: PersonalState) -> float:
    scorer = arm_scorer(node, node.arm("dual"), theta, state)
    assert isinstance(scorer, HeadScorer)
    margins = replace(scorer, hidden=node.cohort.texts.floor).values(len(node.cohort.users))
    return round(float((margins > 0).mean(axis=1).min()), 4)


if __name__ == "__main__":
    main()
