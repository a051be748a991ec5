"""Made-up results of a run that never was, for the tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_core.privacy import RELATIONS
from simulation.results import PopulationSummary, Results

GUARANTEE = {
    "epsilon_record": 8.0,
    "delta": 1e-5,
    "unit": "record",
    "relation": "add or remove one record",
    "sigma_shared": 1.21,
    "sigma_personal": 1.37,
    "shared_steps": 40,
    "personal_steps": 60,
    "sampling_rate": 0.2,
    "clip": 1.0,
    "noise": "simulation",
    "user_noise": 4.0,
    "views": [
        {
            "view": view,
            "sees": sees,
            "unit": unit,
            "relation": RELATIONS[unit],
            "delta": delta,
            "epsilon": spent,
            "lifetime": lifetime,
            "note": note,
        }
        for view, sees, unit, delta, spent, lifetime, note in (
            ("server", "each user's uploads", "record", 1e-5, None, None, "none: the server is trusted"),
            ("public", "released shared adapters", "user", 1e-6, 2.82, 6.27, "at most 6 participations"),
            ("device", "both adapters", "record", 1e-5, 8.0, 8.0, ""),
        )
    ],
}
GROUPS = ("terse", "formal", "warm at home", "sceptical of hedging", "wants every step")
BUCKETS = {"1 to 9": (0, 10), "10 to 29": (10, 30), "30 to 99": (30, 100), "100 or more": (100, 10**9)}


def sample(
    gains: dict[str, float] | None = None,
    users: int = 400,
    seed: int = 7,
    *,
    users_columns: bool = True,
    users_extra: dict[str, Any] | None = None,
    users_table: dict[str, Any] | None = None,
    arm_changes: dict[str, dict[str, Any]] | None = None,
    **changed: Any,
) -> Results:
    """Synthetic results; ``gains`` is each arm's mean accuracy over ``shared`` (its 72%).

    The default is a run where personalization helps.  ``users_columns=False`` leaves the
    users' table empty, ``users_extra`` adds to it, ``users_table`` replaces it;
    ``arm_changes`` overrides measures of seen arms; further keywords replace fields of
    ``Results``.
    """
    gains = {**DEFAULT_GAINS, **(gains or {})}
    rng = np.random.default_rng(seed)
    records = rng.integers(3, 160, size=users)
    group = rng.integers(len(GROUPS), size=users)
    taste = rng.normal(0, 0.08, size=users)
    columns: dict[str, Any] = {
        "user_id": [f"made-up-{index:04d}" for index in range(users)],
        "group": [GROUPS[index] for index in group],
        "federated": [index % 10 != 0 for index in range(users)],
        "adversarial": [index % 25 == 0 for index in range(users)],
        "records": records.tolist(),
    }
    arms, unseen = {}, {}
    for name, extra in gains.items():
        swing = rng.normal(0, 0.05, size=users) + 0.02 * (group - 2) * (extra > 0.03)
        accuracy = np.clip(0.72 + taste + extra + swing, 0, 1)
        against = np.clip(0.14 + taste + 4 * max(extra, 0) + swing, 0, 1)
        new = np.clip(0.52 + taste + extra / 2 + swing, 0, 1)
        against[::17] = np.nan
        columns[f"accuracy_{name}"] = accuracy
        columns[f"minority_accuracy_{name}"] = against
        columns[f"accuracy_unseen_{name}"] = new
        arms[name] = _arm(name, accuracy, against, columns, group, records)
        unseen[name] = _arm(name, new, against, columns, group, records)
    fields: dict[str, Any] = {
        "config": {"population": "world", "users": users, "seed": seed, "federation": {"rounds": 40}},
        "population": PopulationSummary(
            name="made-up world",
            about="Made-up users of a test. Nobody real.",
            users=users,
            federated_users=int(0.9 * users),
            texts=2400,
            records={"TRAIN": 21000, "HOLDBACK": 2300, "SEEN": 5200, "UNSEEN": 4100},
            contexts=("work", "private"),
        ),
        "arms": arms,
        "arms_unseen": unseen,
        "references": {
            "text_mean": {"accuracy": 0.731, "bottom_decile": 0.52, "minority_accuracy": 0.0},
            "matrix_factorization_k4": {"accuracy": 0.812, "bottom_decile": 0.6, "minority_accuracy": 0.55},
        },
        "references_unseen": {"tfidf_user": {"accuracy": 0.551}},
        "bytes_per_user_round": {name: {"up": 12345, "down": 40960} for name in arms if name != "base"},
        "seconds": {
            "prepare": 3.1,
            "train": {name: 21.5 for name in arms if name != "base"},
            "evaluate": 9.4,
        },
        "privacy": {name: GUARANTEE for name in arms if name.endswith("_dp")},
        "users": columns,
        "curves": {
            "dual": [
                {
                    "round": r,
                    "update_norm": 1 / (1 + r),
                    "seconds": 0.5,
                    "replies": 4,
                    "rejected": int(r == 3),
                }
                for r in range(8)
            ]
        },
    }
    for name, values in (arm_changes or {}).items():
        arms[name].update(values)
    if users_extra:
        columns.update(users_extra)
    if users_table is not None or not users_columns:
        fields["users"] = users_table or {}
    return Results(**{**fields, **changed})


DEFAULT_GAINS = {
    "base": -0.2,
    "shared": 0.0,
    "local": -0.02,
    "dual": 0.08,
    "shared_dp": -0.01,
    "local_dp": -0.06,
    "dual_dp": 0.05,
}


def _arm(name: str, accuracy: Any, against: Any, columns: Any, group: Any, records: Any) -> dict[str, Any]:
    mean, error = float(accuracy.mean()), float(accuracy.std() / len(accuracy) ** 0.5)
    private = name.endswith("_dp")
    worse = accuracy < columns.get("accuracy_shared", accuracy)
    return {
        "accuracy": mean,
        "ci95": (mean - 1.96 * error, mean + 1.96 * error),
        "bottom_decile": float(np.quantile(accuracy, 0.1)),
        "minority_accuracy": float(np.nanmean(against)),
        "harmed_share": None if name == "shared" else float(worse.mean()),
        "harmed_share_significant": None if name == "shared" else float(worse.mean() / 10),
        "harmed_share_expected": None if name == "shared" else 0.031,
        "values_accuracy": 0.985,
        "values_worst_user": 0.96,
        "values_drop_worst": 0.4,
        "values_drop_personal": 0.2 if name.startswith("dual") else None,
        "epsilon_record": GUARANTEE["epsilon_record"] if private else None,
        "delta": GUARANTEE["delta"] if private else None,
        "pair_accuracy": mean - 0.01,
        "mean_margin": 0.31,
        "length_shift_words": -1.2,
        "accuracy_unfederated": float(accuracy[::10].mean()),
        "users": len(accuracy),
        "by_group": {
            label: {"accuracy": float(accuracy[group == i].mean()), "users": int((group == i).sum())}
            for i, label in enumerate(GROUPS)
            if (group == i).any()
        },
        "by_records": {
            label: {"accuracy": float(accuracy[inside].mean()), "users": int(inside.sum())}
            for label, (low, high) in BUCKETS.items()
            if (inside := (records >= low) & (records < high)).any()
        },
    }
