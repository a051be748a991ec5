"""FedIT: federated averaging of both LoRA factors.

Zhang et al. 2023, "Towards Building the Federated GPT: Federated Instruction Tuning"
(arXiv 2305.05644), Algorithm 1: in round t each client k trains its copy (A_k, B_k) and the
server takes A <- sum_k n_k/n A_k and B <- sum_k n_k/n B_k.

Here the weights are uniform over users and not by numbers of records, which are private.
The paper's server step is ``federation.server = "sgd"`` with ``server_lr = 1``; other server
optimizers take the same mean change as a pseudo-gradient.  Note that mean(B) mean(A) is not
mean(B A): the product that is averaged is not the product that clients trained.
"""

from __future__ import annotations

from typing import ClassVar

from fl_core.config import RunConfig
from strategies.base import FederatedStrategy, require_kinds


class FedIT(FederatedStrategy):
    """Averages A and B, each on its own."""

    method: ClassVar[str] = "fedit"
    about: ClassVar[str] = "FedAvg of A and B, Zhang et al. 2023"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """The shared adapter must train both factors."""
        require_kinds(config, cls.method, shared=("lora",))
