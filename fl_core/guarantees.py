"""What an arm promises, to whom: one guarantee a view, in a run and over a lifetime.

Three adversaries see three things (docs/privacy.md).  The *server* sees uploads; the *public*, other
users among it, sees released shared adapters; whoever reads the *device* sees both adapters.  Each view
has its own ledger, so an epsilon always stands with its view, unit and relation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fl_core.config import RunConfig
from fl_core.privacy import RELATIONS, DpEvent, Unit, epsilon, gaussian_epsilon
from fl_core.shared import Arm, arm_sigmas, planned_steps

Events = Sequence[DpEvent]


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta) of one ``unit`` against one view.

    ``epsilon``: what the run has spent; ``lifetime``: the most that this and all later runs may
    spend.  Both are ``inf`` where the view has no guarantee; ``note`` then says whom it trusts.
    """

    view: str
    sees: str
    unit: Unit
    delta: float
    epsilon: float
    lifetime: float
    note: str = ""

    @property
    def relation(self) -> str:
        """The neighbouring relation of the unit."""
        return RELATIONS[self.unit]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a report; ``None`` where there is no guarantee."""
        bounds = {name: _finite(getattr(self, name)) for name in ("epsilon", "lifetime")}
        return {**asdict(self), **bounds, "relation": self.relation}


def _finite(value: float) -> float | None:
    return value if value < math.inf else None


def guarantees(config: RunConfig, arm: str, shared_steps: int, personal_steps: int) -> tuple[Guarantee, ...]:
    """The views of a private arm in which a record made at most so many steps.

    A view that shows nothing of an arm (uploads of an arm that is never federated) is left out.
    """
    on_device = _device(config, arm, shared_steps, personal_steps)
    if Arm.named(arm).kind == "local":
        return (on_device,)
    steps = shared_steps, personal_steps
    return _server(config, arm, *steps), _public(config, arm, *steps), on_device


def _server(config: RunConfig, arm: str, shared_steps: int, personal_steps: int) -> Guarantee:
    privacy, sees = config.privacy, "each user's uploads"
    if not config.noised_uploads(arm):
        note = "none: uploads carry no noise of their own, so the server is trusted with them"
        return Guarantee("server", sees, "record", privacy.delta, math.inf, math.inf, note)
    spent = epsilon(_through_uploads(config, arm, shared_steps, personal_steps), privacy.delta)
    return Guarantee("server", sees, "record", privacy.delta, spent, privacy.epsilon)


def _public(config: RunConfig, arm: str, shared_steps: int, personal_steps: int) -> Guarantee:
    privacy, sees = config.privacy, "released shared adapters"
    if config.noised_release(arm):
        taken = shared_steps / config.train.local_steps
        window, ever = (
            gaussian_epsilon(math.sqrt(count) / privacy.user_noise, privacy.user_delta)
            for count in (taken, privacy.lifetime_participations)
        )
        note = f"at most {privacy.participations} participations in {privacy.window_days} days"
        note += f", {privacy.lifetime_participations} in all"
        return Guarantee("public", sees, "user", privacy.user_delta, window, max(window, ever), note)
    if config.noised_uploads(arm):
        spent = epsilon(_through_uploads(config, arm, shared_steps, personal_steps), privacy.delta)
        note = "made of noised uploads alone"
        return Guarantee("public", sees, "record", privacy.delta, spent, privacy.epsilon, note)
    note = "none: neither uploads nor their sum carry noise"
    return Guarantee("public", sees, "record", privacy.delta, math.inf, math.inf, note)


def _device(config: RunConfig, arm: str, shared_steps: int, personal_steps: int) -> Guarantee:
    """Both adapters jointly.  A record trains or is held back for fusion, never both: the larger counts."""
    named, privacy = Arm.named(arm), config.privacy
    own = _own(config, arm, personal_steps)
    through = _uploads(config, arm, shared_steps) or _release(config, arm, shared_steps)
    fusion = privacy.fusion_epsilon if named.kind != "shared" else 0.0
    spent = max(epsilon([*through, own], privacy.delta), fusion)
    note = ""
    if named.kind != "local" and not through:
        note = "through the personal adapter alone; the shared one is as without differential privacy"
    later = _release(config, arm, privacy.lifetime_participations * config.train.local_steps)
    planned = _own(config, arm, max(personal_steps, planned_steps(config, named)[1]))
    ever = max(privacy.epsilon, spent, epsilon([*later, planned], privacy.delta))
    return Guarantee("device", "both adapters", "record", privacy.delta, spent, ever, note)


def _uploads(config: RunConfig, arm: str, steps: int) -> Events:
    """What a record did through noised uploads."""
    if not config.noised_uploads(arm) or not steps:
        return ()
    privacy, sigma = config.privacy, arm_sigmas(config, Arm.named(arm)).shared
    return (DpEvent(privacy.sampling_rate, sigma, steps, privacy.clip, "shared"),)


def _own(config: RunConfig, arm: str, steps: int) -> DpEvent:
    """What a record did through its user's own numbers."""
    privacy, sigma = config.privacy, arm_sigmas(config, Arm.named(arm)).personal
    return DpEvent(privacy.sampling_rate, sigma, steps, privacy.clip, "personal")


def _through_uploads(config: RunConfig, arm: str, shared_steps: int, personal_steps: int) -> Events:
    """What uploads show of a record: they are made with its user's own numbers, as the rounds left them."""
    in_rounds = max(0, personal_steps - config.train.final_steps)
    return (*_uploads(config, arm, shared_steps), _own(config, arm, in_rounds))


def _release(config: RunConfig, arm: str, steps: int) -> Events:
    """What a record did through a release that is private for users.

    A record moves its user's upload by at most its own clip over the public denominator where one
    step makes the upload (projecting onto a ball brings no two points farther apart), and by twice
    the user's clip in any case.
    """
    if not config.noised_release(arm) or not steps:
        return ()
    privacy, train = config.privacy, config.train
    moved = 2 * privacy.user_clip
    if train.local_steps == 1 and train.inner == "sgd":
        rate = 1.0 if config.shares_texts else train.inner_lr
        moved = min(moved, rate * privacy.clip / train.expected_batch)
    sigma = privacy.user_noise * privacy.user_clip / moved
    return (DpEvent(1.0, sigma, steps // train.local_steps, moved, "shared"),)
