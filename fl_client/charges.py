"""What the work of a private arm is charged as, on the node's ledger.

| Work | Event (unit: record, relation: add or remove one) | Views |
|---|---|---|
| a round's upload | ``local_steps`` Gaussian steps, adapter shared | server, personal |
| a round's personal steps | ``personal_steps`` Gaussian steps, adapter personal | personal |
| the personal phase | ``final_steps`` Gaussian steps, adapter personal | personal |
| fusion weights | one exponential mechanism on held-back records | personal |

A round is about the texts of one part of the public schedule, so that records of other parts take
no part in its upload.  Under ``privacy.scope`` "personal" uploads are not noised, protect
nothing and are not charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fl_core.config import RunConfig, config_hash
from fl_core.ledger import FOLDER, Ledger
from fl_core.participations import run_key
from fl_core.populations import duet_home
from fl_core.privacy import Adapter, DpEvent, fusion_choice
from fl_core.shared import Arm, arm_sigmas, planned_steps, text_shards
from fl_core.spending import ALL, Bools, Budget, Charge, Ints

Users = Mapping[Adapter, Bools]
"""Who takes part, by what is trained."""


def ledger_path(config: RunConfig, out: Path, users: Ints) -> Path:
    """The ledger of the node that hosts ``users``, of which there is at least one.

    A device has one for all runs, in Duet's home; a simulated node one a run, in its folder.
    """
    home = duet_home() if config.federation.users_per_node == 1 else out
    return home / FOLDER / f"node-{int(users[0]):07d}.sqlite"


def ledger_run(config: RunConfig, out: Path) -> str:
    """The name of a run in its ledger: a resumed run has the same."""
    return run_key(config, out) if config.federation.users_per_node == 1 else config_hash(config)


def node_ledger(config: RunConfig, out: Path, users: Ints, arm: str) -> Ledger:
    """The node's ledger for ``arm``, with a budget for each private arm: arms are worlds of their own."""
    arms = [Arm.named(name) for name in sorted({arm, *config.arm_names})]
    budgets = [arm_budget(config, arm) for arm in arms if arm.private]
    return Ledger(ledger_path(config, out, users), users, budgets)


def arm_budget(config: RunConfig, arm: Arm) -> Budget:
    """What a record may cost in both adapters of an arm; the plan is what the noise was derived for."""
    privacy = config.privacy
    most = max(privacy.epsilon, privacy.fusion_epsilon)  # of different records: fl_core.fusion
    return Budget("personal", most, privacy.delta, arm=arm.name, plan=tuple(planned(config, arm)))


def planned(config: RunConfig, arm: Arm) -> list[DpEvent]:
    """All that a record of a private arm can take part in."""
    shared, personal = planned_steps(config, arm)
    events = [upload_event(config, arm, shared)] if config.noised_uploads(arm.name) else []
    if arm.kind != "shared":
        events.append(personal_event(config, arm, personal))
        if config.privacy.fusion_epsilon:
            events.append(fusion_choice(config.privacy.fusion_epsilon))
    return events


def upload_event(config: RunConfig, arm: Arm, steps: int) -> DpEvent:
    """``steps`` noised steps on the shared adapter."""
    privacy = config.privacy
    return DpEvent(privacy.sampling_rate, arm_sigmas(config, arm).shared, steps, privacy.clip, "shared")


def personal_event(config: RunConfig, arm: Arm, steps: int) -> DpEvent:
    """``steps`` noised steps on the personal adapter."""
    privacy = config.privacy
    return DpEvent(privacy.sampling_rate, arm_sigmas(config, arm).personal, steps, privacy.clip, "personal")


def round_charges(
    config: RunConfig, arm: Arm, server_round: int, senders: Bools, online: Bools, personal_steps: int
) -> list[Charge]:
    """What one round costs at most: the upload of the ``senders``, and ``personal_steps`` of those online."""
    charges, most = [], config.privacy.record_steps
    if config.noised_uploads(arm.name):
        parts = text_shards(config, arm)
        part = (server_round - 1) % parts if parts > 1 else ALL
        charges.append(Charge(upload_event(config, arm, config.train.local_steps), senders, part, most))
    if personal_steps:
        charges.append(Charge(personal_event(config, arm, personal_steps), online, ALL, most))
    return charges


def final_charges(config: RunConfig, arm: Arm, users: int, steps: int) -> list[Charge]:
    """What the personal phase of ``users`` costs at most: ``steps``, and the choice of fusion weights."""
    everyone, privacy = np.ones(users, dtype=bool), config.privacy
    charges = (
        [Charge(personal_event(config, arm, steps), everyone, ALL, privacy.record_steps)] if steps else []
    )
    if privacy.fusion_epsilon:
        charges.append(Charge(fusion_choice(privacy.fusion_epsilon), everyone))
    return charges
