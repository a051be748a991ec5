"""From the configuration's method to its strategy."""

from __future__ import annotations

from collections.abc import Mapping

from fl_core.config import RunConfig
from fl_core.wire import COUNT_LIMIT
from strategies.base import FederatedStrategy
from strategies.components import Components
from strategies.fdlora import FDLoRA
from strategies.fdlora_as_printed import FDLoRAAsPrinted
from strategies.fedit import FedIT
from strategies.ffa import FFA
from strategies.sampling import SETTLE_SECONDS, Participations, Timer

STRATEGIES: Mapping[str, type[FederatedStrategy]] = {
    "components": Components,
    "fedit": FedIT,
    "ffa": FFA,
    "fdlora": FDLoRA,
    "fdlora-as-printed": FDLoRAAsPrinted,
}


def strategy_for(
    config: RunConfig,
    arm: str,
    *,
    count_limit: int = COUNT_LIMIT,
    timer: Timer | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    participations: Participations | None = None,
) -> FederatedStrategy:
    """The strategy of ``config.method`` for one arm; ``ConfigurationError`` where they disagree."""
    return STRATEGIES[config.method](
        config,
        arm,
        count_limit=count_limit,
        timer=timer,
        settle_seconds=settle_seconds,
        participations=participations,
    )
