"""What server and devices build alike from one configuration: an arm's adapters on a base.

An *arm* is one way of training that a report compares: ``shared`` (one adapter for all),
``local`` (a personal adapter alone, no federation), ``dual`` (both); ``_dp`` marks the same
with differential privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core.adapters import DualAdapter, Layout, Site
from fl_core.base_model import BaseModel, load_base
from fl_core.calibration import Sigmas, calibrate
from fl_core.config import AdapterSpec, RunConfig
from fl_core.errors import PrivacyError
from fl_core.features import FeatureMap
from fl_core.trunk import Trunk

Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Arm:
    """An arm's parts: ``kind`` is shared, local or dual; ``private`` whether it trains with DP."""

    name: str
    kind: str
    private: bool

    @staticmethod
    def named(name: str) -> Arm:
        """``"dual_dp"`` -> kind dual, private."""
        return Arm(name, name.removesuffix("_dp"), name.endswith("_dp"))


def arm_specs(config: RunConfig, arm: Arm) -> tuple[AdapterSpec, AdapterSpec | None]:
    """The (shared, personal) specifications of an arm.

    ``shared`` alone has no use for components; ``local`` has a shared part on no layer, which
    is never trained.
    """
    if arm.kind == "local":
        return AdapterSpec(kind="b_only", targets=""), config.local
    if head_alone(config, arm):
        config = config.model_copy(update={"shared": config.shared.model_copy(update={"targets": ""})})
    if arm.kind == "shared":
        plain = {"kind": "b_only"} if config.shared.kind == "components" else {}
        return config.shared.model_copy(update=plain), None
    return config.shared, config.personal


def head_alone(config: RunConfig, arm: Arm) -> bool:
    """Whether an arm's shared adapter is the reward head without layers of the trunk.

    Noise in a round's sum grows with the square root of the numbers trained: where there is any,
    the trunk is left out unless ``privacy.trunk`` asks for it.
    """
    noised = config.noised(arm.name) and not config.privacy.trunk
    reward = config.train.objective == "reward" and not config.shared.component_trunk
    return reward and config.shares_texts and (noised or not config.shared.target_names)


def text_shards(config: RunConfig, arm: Arm) -> int:
    """Parts of the public schedule of texts: 1 where no pass over the trunk is saved by it."""
    return 1 if head_alone(config, arm) else config.text_shards


def planned_steps(config: RunConfig, arm: Arm) -> tuple[int, int]:
    """The most (shared, personal) steps that any record takes part in."""
    train = config.train
    cycles = -(-config.federation.rounds // text_shards(config, arm))
    sent = min(cycles, config.privacy.participations) if config.noised_release(arm.name) else cycles
    shared = 0 if arm.kind == "local" else sent * train.local_steps
    if arm.kind == "shared":
        return shared, 0
    in_rounds = 0 if arm.kind == "local" else cycles * train.personal_steps
    return shared, in_rounds + train.final_steps


def arm_sigmas(config: RunConfig, arm: Arm) -> Sigmas:
    """The noise multipliers that the declared steps need for the target; (0, 0) without DP.

    Raises ``PrivacyError`` where a private arm has no target.
    """
    if not arm.private:
        return Sigmas(0.0, 0.0)
    if config.privacy.epsilon == 0:
        raise PrivacyError(f"arm {arm.name!r} is private, but privacy.epsilon=0; set a target above 0")
    shared, personal = planned_steps(config, arm)
    if config.privacy.scope == "personal":
        return Sigmas(0.0, calibrate(config.privacy, 0, personal).personal if personal else 0.0)
    return calibrate(config.privacy, shared, personal)


def build_arm(
    config: RunConfig,
    arm: Arm,
    base: BaseModel,
    features: FeatureMap | None = None,
    trunk: Trunk | None = None,
) -> tuple[Trunk, DualAdapter]:
    """The trunk with the arm's layers opened, and the adapters' structure on it."""
    shared, personal = arm_specs(config, arm)
    own = personal if personal is not None and personal.kind != "components" else None
    selections = [(shared.target_names, shared.layers)]
    if own is not None:
        selections.append((own.target_names, own.layers))
    trunk = trunk or Trunk(base, selections)
    chosen = [_sites(trunk, base, names, layers) for names, layers in selections]
    fitted = features is not None
    features = features or FeatureMap.plain(trunk.hidden, config.train.pooling, trunk.depths)
    if config.noised(arm.name):
        features = features.narrowed(config.privacy.head_width)
    width = features.width
    weights = {name: site.weight for name, site in trunk.sites.items()}
    adapter = DualAdapter(
        shared=shared,
        personal=personal,
        sites_shared=chosen[0],
        sites_personal=chosen[1] if own is not None else (),
        hidden=trunk.hidden,
        head=config.train.objective == "reward",
        seed=config.seed,
        weights=weights,
        head_basis=torch.eye(width) * math.sqrt(width) if fitted else None,
        features=features,
    )
    return trunk, adapter


def _sites(trunk: Trunk, base: BaseModel, names: tuple[str, ...], layers: str) -> tuple[Site, ...]:
    found = trunk.names_of(names, layers)
    return tuple(
        Site(name, trunk.sites[name].weight.shape[1], trunk.sites[name].weight.shape[0]) for name in found
    )


def initial_shared(config: RunConfig, arm: str) -> Arrays:
    """The shared adapter before the first round, from the public seed."""
    _, adapter = build_arm(config, Arm.named(arm), load_base(config.model, config.dtype))
    return to_arrays(adapter.shared_layout, adapter.initial_shared())


def to_arrays(layout: Layout, flat: Tensor) -> Arrays:
    """A flat [D] vector as named float32 arrays."""
    return layout.split(flat.detach().float().numpy())


def from_arrays(layout: Layout, arrays: Arrays) -> Tensor:
    """Named arrays as a flat vector.  Raises ``AdapterError`` where they do not fit."""
    return torch.from_numpy(layout.join(arrays))
