"""Log-probabilities of chosen tokens without holding all positions' logits at once.

A vocabulary is large: the logits of 1,000 positions over 50,000 tokens are 200 MB, and a backward
pass through a softmax holds them several times.  But the gradient of one token's log-probability in
its hidden state is known as soon as its logits are,

    d log p(y) / d h = W_y - sum_v p(v) W_v,

so a part of the positions at a time is computed, its gradient [n, d] kept and the logits let go.
The products are those of an ordinary forward and backward pass; nothing is computed twice.  (As the
fused losses of Liger Kernel, Hsu et al. 2024, section 3.2.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

LOGITS_AT_A_TIME = 2**23
"""Numbers of logits that are held at once."""


def chosen_logprobs(hidden: Tensor, token: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[n] float32 log-probability, in nats, of ``token`` [n] after ``hidden`` [n, d].

    ``weight`` [V, d] and ``bias`` [V] of the vocabulary head are frozen: the gradient goes to
    ``hidden`` alone.
    """
    out: Tensor = _Chosen.apply(hidden, token, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, token: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = max(1, LOGITS_AT_A_TIME // len(weight))
        wanted = bool(ctx.needs_input_grad[0])
        gradient = torch.empty_like(hidden) if wanted else None
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            logprobs = log_softmax(linear(hidden[here], weight, bias).float(), dim=1)
            place = token[here, None]
            out[here] = logprobs.gather(1, place)[:, 0]
            if gradient is not None:
                slope = logprobs.exp_().neg_()
                slope.scatter_add_(1, place, torch.ones_like(place, dtype=slope.dtype))
                gradient[here] = slope.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * upstream[:, None]).to(gradient.dtype), None, None, None
