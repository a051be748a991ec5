"""Shared components, private mixing weights: the expected default.

The server holds a common adapter and K components; user u's adapter is
common + sum_k w_uk component_k.  Rounds alternate as in FedRep (Collins et al. 2021,
"Exploiting Shared Representations for Personalized Federated Learning", ICML, Algorithm 1):
the device first improves its private weights w_u with the components fixed, which never
leave it, then sends the update of the common part and the components given w_u; the server
averages the updates over users (FedRep's line "phi <- 1/(rn) sum phi_i", in the generalised
form of a server optimizer).

Deviations from FedRep: what is shared is not a representation below a private head but a
basis of adapters, as in factorised preferences (Shenfeld et al. 2025, reward factorization;
Li et al. 2024, P-DPO's latent users); and the server's step may be adaptive.
"""

from __future__ import annotations

from typing import ClassVar

from fl_core.config import RunConfig
from strategies.base import FederatedStrategy, require_kinds


class Components(FederatedStrategy):
    """Averages updates of the common part and the components."""

    method: ClassVar[str] = "components"
    about: ClassVar[str] = "private weights over shared components; alternating as in FedRep, 2021"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Components on both sides."""
        require_kinds(config, cls.method, shared=("components",), personal=("components",))
