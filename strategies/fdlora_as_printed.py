"""FDLoRA as printed: a labelled reproduction that LEAKS personal weights to the server.

Qi et al. 2024 (arXiv 2406.07925), Algorithm 1 as re-implementations read it.  Line 7 starts
the shared adapter from the mean of all *personal* adapters, which therefore leave their
devices once; and at every H-th round the device overwrites its personal adapter with its
shared copy (done on the device, which knows the method and the round).  The rest is as in
``fdlora``.

It exists so that results can be compared with the paper's.  It is refused unless
``federation.leak-personal-weights`` is set, and no privacy claim holds under it.
"""

from __future__ import annotations

from typing import ClassVar

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fl_core.config import RunConfig
from fl_core.errors import RunError
from fl_core.wire import Arrays, Instruction, Phase, from_record, shapes_of, to_record, validate_reply
from strategies.aggregation import mean_update
from strategies.base import require
from strategies.exchange import LOG, exchange, instruct, judge
from strategies.fdlora import FDLoRA


class FDLoRAAsPrinted(FDLoRA):
    """Starts from the mean of the personal adapters, which it collects.  Leaks by design."""

    method: ClassVar[str] = "fdlora-as-printed"
    about: ClassVar[str] = "LEAKS PERSONAL WEIGHTS: FDLoRA, Algorithm 1 as printed; Qi et al. 2024"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """As ``fdlora``, and the leak asked for, and both adapters of one form."""
        require(
            config.federation.leak_personal_weights,
            cls.method,
            "it sends every user's personal weights to the server and is refused unless "
            "federation.leak-personal-weights=true; method 'fdlora' never sends them",
        )
        require(
            config.privacy.user_noise == 0,
            cls.method,
            "what it uploads passes no noise of the server; set privacy.user-noise=0, or use 'fdlora'",
        )
        super().check(config)
        shared, personal = config.shared, config.personal
        same = all(
            getattr(shared, name) == getattr(personal, name) for name in ("kind", "rank", "targets", "layers")
        )
        require(same, cls.method, "shared and personal must have one kind, rank, targets and layers (line 7)")

    def prepare(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Line 7: the mean of the personal adapters of all nodes online, where the arm has them."""
        if not self.arm.startswith("dual"):
            return arrays
        LOG.warning("method %r: collecting personal weights; no privacy claim holds", self.method)
        deadline, shapes = self.config.federation.deadline_seconds, shapes_of(from_record(arrays))
        messages = instruct(Instruction(self.arm, 0, Phase.UPLOAD), arrays, self.online_nodes(grid), deadline)
        replies = exchange(grid, messages, deadline, self.timer)

        def parse(reply: Message) -> tuple[Arrays, int]:
            return validate_reply(reply, shapes, 0.0, self.count_limit)

        verdict = judge(replies, [message.metadata.message_id for message in messages], parse)
        if len(verdict.accepted) < self.config.federation.minimum_nodes:
            raise RunError(
                f"method {self.method!r}: {len(verdict.accepted)} valid uploads of personal adapters "
                f"(rejected: {dict(verdict.rejected)}; {'; '.join(verdict.notes)}), but "
                f"federation.minimum-nodes={self.config.federation.minimum_nodes}"
            )
        mean, _ = mean_update(verdict.in_order)
        return to_record({name: value.astype("float32") for name, value in mean.items()})
