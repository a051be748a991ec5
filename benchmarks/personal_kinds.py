"""Which personal kind helps at which number of records, with and without DP: one picture.

One shared adapter setting, one population, the personal kinds side by side: ``components``
(K mixing weights over shared components), ``subspace`` (r numbers along the public directions in
which texts vary most).  With DP means on the personal side.  Both live in the reward head;
whole vectors of one's own (``b_only``, ``lora``) and adapters in the trunk are not in this picture.

    duet prepare POPULATION --source world --users 200 --set world.prompts=64 --set world.answers=8
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

from benchmarks.in_process import train_arm, user_accuracies
from fl_core.config import RunConfig
from fl_core.records import Population, Split
from simulation.figures import sweep_figure
from simulation.metrics import RECORD_BUCKETS, train_counts
from simulation.uncertainty import bootstrap_interval

KINDS: Mapping[str, Mapping[str, Any]] = {
    "components": {},
    "subspace": {"shared.kind": "b_only", "personal.kind": "subspace", "personal.rank": 32},
}


def settings(kind: str, epsilon: float, rounds: int, seed: int) -> RunConfig:
    """The run of one kind; epsilon 0 leaves DP out."""
    flat = RunConfig().to_flat() | dict(KINDS[kind])
    flat |= {"shared.targets": "", "privacy.epsilon": epsilon or 8.0}
    flat |= {"federation.rounds": rounds, "seed": seed, "privacy.scope": "personal"}
    return RunConfig.from_flat(flat)


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


def measure(
    population: Path, epsilon: float, rounds: int, seed: int, kinds: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Gains over the shared adapter alone (without DP) for every kind, with and without DP."""
    counts = train_counts(Population.load(population))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        node, theta = train_arm(settings("components", 0, rounds, seed), population, out, "shared")
        pooled = user_accuracies(node, "shared", theta, None, Split.SEEN)
        rows: list[dict[str, Any]] = []
        for kind in kinds:
            for arm in ("dual", "dual_dp"):
                started, config = time.monotonic(), settings(kind, epsilon, rounds, seed)
                shutil.rmtree(out / "arms", ignore_errors=True)  # the file of features stays
                node, theta = train_arm(config, population, out, arm)
                state = node.arm(arm).store.everyone()
                gain = user_accuracies(node, arm, theta, state, Split.SEEN) - pooled
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
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = measure(args.population, args.epsilon, args.rounds, args.seed, tuple(args.kinds))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "personal_kinds.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (args.out / "personal_kinds.svg").write_bytes(sweep_figure(rows))


if __name__ == "__main__":
    main()
