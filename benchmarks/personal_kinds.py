"""Which personal kind helps at which number of records, with and without DP: one picture.

One population, one shared reward head, the personal kinds side by side: ``components`` (K mixing
weights over shared components) and ``subspace`` (r numbers along the public directions in which texts
vary most), which take part in the rounds, and, fitted to the finished shared adapter, ``b_only`` and
``lora`` (a reward head of one's own and adapters in the top layer).  With DP means on the personal side.

    duet prepare POPULATION --source world --users 80 --set world.prompts=64 --set world.answers=8
    python -m benchmarks.personal_kinds --population POPULATION --out docs
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_process import user_accuracies
from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.ledger import FOLDER
from fl_core.records import Population, Split
from simulation.figures import sweep_figure
from simulation.in_process import train_arm
from simulation.metrics import RECORD_BUCKETS, train_counts
from simulation.scenario import nested_options, read_scenario
from simulation.uncertainty import bootstrap_interval

BASE = ("shared.targets=", "privacy.scope=personal", "privacy.sampling-rate=1.0", "arms=dual")
OWN = ("shared.kind=b_only", "federation.rounds=0")
"""Kinds that need no part in the federation are fitted to the finished shared adapter."""
IN_TRUNK = (
    *OWN,
    "personal.targets=q_proj,v_proj,o_proj,down_proj",
    "personal.layers=top:1",
    "train.final-steps=8",
    "train.weight-decay=0.5",  # the prior of the other kinds: 4 records, of 8 that a step expects
)
KINDS: Mapping[str, tuple[str, ...]] = {
    "components": (),
    "subspace": ("shared.kind=b_only", "personal.kind=subspace", "personal.rank=8"),
    "b_only": (*IN_TRUNK, "personal.kind=b_only"),
    "lora": (*IN_TRUNK, "personal.kind=lora"),
}


def settings(asked: argparse.Namespace, *kind: str) -> RunConfig:
    """The run of one kind."""
    own = (f"federation.rounds={asked.rounds}", f"privacy.epsilon={asked.epsilon}", f"seed={asked.seed}")
    return read_scenario(None, nested_options([*BASE, *own, *kind, *asked.set])).config


def rows_of(kind: str, private: bool, gain: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """Mean gain with its 95% interval in each bucket of numbers of TRAIN records."""
    rows = []
    edges = [*RECORD_BUCKETS[1:], 10**9]
    for low, high in itertools.pairwise(edges):
        here = gain[(counts >= low) & (counts < high) & ~np.isnan(gain)]
        if len(here) >= 5:
            name = f"{low}-{high - 1}" if high < 10**9 else f"{low}+"
            interval = bootstrap_interval(here, np.ones(len(here)), 0)
            rows.append(
                {
                    "kind": kind,
                    "dp": private,
                    "records_bucket": name,
                    "accuracy_gain": float(here.mean()),
                    "ci": interval,
                    "users": len(here),
                }
            )
    return rows


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Gains over the shared adapter alone (without DP) for every kind, with and without DP."""
    population, split = asked.population, Split[asked.split.upper()]
    counts = train_counts(Population.load(population))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        node, shared = train_arm(settings(asked), population, out, "shared")
        pooled = user_accuracies(node, "shared", shared, None, split)
        rows: list[dict[str, Any]] = []
        for kind in asked.kinds:
            for arm in asked.arms:
                started, config = time.monotonic(), settings(asked, *KINDS[kind])
                for left in ("arms", FOLDER):  # the file of features stays
                    shutil.rmtree(out / left, ignore_errors=True)
                theta = shared
                if config.federation.rounds:
                    node, theta = train_arm(config, population, out, arm)
                else:
                    node = NodeTrainer(config, population, out, 0, 1)
                    node.personalize(arm, 1, theta)
                state = node.arm(arm).store.everyone()
                gain = user_accuracies(node, arm, theta, state, split) - pooled
                rows += rows_of(kind, arm == "dual_dp", gain, counts)
                seconds = time.monotonic() - started
                print(f"{kind} {arm}: gain {np.nanmean(gain):+.4f}  {seconds:.0f} s", flush=True)
    return rows


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--population", type=Path, required=True, help="a folder that `duet prepare` wrote")
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of the picture and the figures"
    )
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--arms", nargs="+", choices=("dual", "dual_dp"), default=["dual", "dual_dp"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("seen", "validation"), default="seen")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every kind")
    args = parser.parse_args()
    rows = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "personal_kinds.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (args.out / "personal_kinds.svg").write_bytes(sweep_figure(rows))


if __name__ == "__main__":
    main()
