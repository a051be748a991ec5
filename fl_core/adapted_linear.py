"""Linear layers that add low-rank terms a row, and hand out per-row gradients.

The frozen layer's product is computed once for all rows; the adapters' products are batched.
In the backward pass each row's gradients of its own A and B come from the activations and
output gradients that the layer already holds (facts: exact per-example gradients without a
second pass; cf. ghost clipping, Li et al. 2021, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass
class Need:
    """Which per-row gradients a backward pass should keep for one term."""

    a: bool = False
    b: bool = False


@dataclass
class RowTerm:
    """A low-rank term for N rows: ``a`` [N or 1, R, in], ``b`` [N or 1, out, R], scaled; float32.

    After a backward pass ``grad_a`` [N, R, in] and ``grad_b`` [N, out, R], float32, hold each
    row's gradient, where ``need`` asked for it.
    """

    a: Tensor
    b: Tensor
    need: Need = field(default_factory=Need)
    grad_a: Tensor | None = None
    grad_b: Tensor | None = None


def _added(base: Tensor, x: Tensor, term: RowTerm) -> tuple[Tensor, Tensor]:
    """(base + (x A^T) B^T, x A^T); in float32 whatever the base's type, as PEFT does."""
    h = torch.matmul(x.float(), term.a.mT)
    return (base + torch.matmul(h, term.b.mT)).to(base.dtype), h


class _LowRank(torch.autograd.Function):
    """base + (x A^T) B^T, row by row; the gradients of A and B go to the ``RowTerm``."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, anchor: Tensor, term: RowTerm) -> Tensor:
        y, h = _added(base, x, term)
        ctx.save_for_backward(x, term.a, term.b, h)
        ctx.term = term
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, a, b, h = ctx.saved_tensors
        term, dx, grad = ctx.term, None, grads[0].float()
        dh = torch.matmul(grad, b)
        if ctx.needs_input_grad[1]:
            dx = torch.matmul(dh, a).to(x.dtype)
        if term.need.a:
            term.grad_a = torch.bmm(dh.mT, x.float())
        if term.need.b:
            term.grad_b = torch.bmm(grad.mT, h)
        return grads[0], dx, None, None


class AdaptedLinear(nn.Module):
    """A frozen ``nn.Linear`` or ``Conv1D`` with a slot for the rows' low-rank terms.

    With an empty slot the output is that of the frozen layer, bit for bit.
    """

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.terms: tuple[RowTerm, ...] = ()
        self.anchor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, in] -> [N, T, out]."""
        y: Tensor = self.frozen(x)
        for term in self.terms:
            if self.anchor is None:
                y, _ = _added(y, x, term)
            else:
                y = _LowRank.apply(y, x, self.anchor, term)  # type: ignore[no-untyped-call]
        return y

    @property
    def weight(self) -> Tensor:
        """The frozen W as [out, in]."""
        inner = self.frozen
        if isinstance(inner, Conv1D):
            return inner.weight.T
        assert isinstance(inner, nn.Linear)
        return inner.weight
