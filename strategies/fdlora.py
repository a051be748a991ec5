"""FDLoRA without the leak: dual LoRA, inner optimizer on devices, outer Nesterov on the server.

Qi et al. 2024, "FDLoRA: Personalized Federated Learning of Large Language Model via Dual
LoRA Tuning" (arXiv 2406.07925), Algorithm 1 as re-implementations read it, stage 2: each
round the client takes K inner steps on its copy of the shared adapter, and the server applies
the mean change with Nesterov momentum (as DiLoCo, Douillard et al. 2023).  Stage 3, AdaFusion,
runs on the device.

Deviations, all so that nothing personal leaves a device in any form: the shared adapter
starts from the public seed and not from the mean of the personal ones (line 7), and the
personal adapter is never overwritten by the shared copy, nor sent.  ``fdlora_as_printed``
keeps both and leaks.
"""

from __future__ import annotations

from typing import ClassVar

from fl_core.config import RunConfig
from strategies.base import FederatedStrategy, require, require_kinds


class FDLoRA(FederatedStrategy):
    """Outer Nesterov over the mean change of the shared copies."""

    method: ClassVar[str] = "fdlora"
    about: ClassVar[str] = "FDLoRA without its leak: public start, nothing personal sent; Qi et al. 2024"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """LoRA on both sides, and Nesterov on the server."""
        require_kinds(config, cls.method, shared=("lora", "b_only"))
        server = config.federation.server
        require(
            server == "nesterov",
            cls.method,
            f"federation.server={server!r} must be 'nesterov', the method's outer optimizer "
            "(a usual start: federation.server-lr=0.7)",
        )
