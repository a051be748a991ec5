"""Chosen log-probabilities a part at a time, against log-softmax and autograd on all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

from fl_core import vocabulary
from fl_core.vocabulary import chosen_logprobs

N, D, V = 23, 8, 50


def _problem(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    bias = torch.randn(V, generator=generator).to(dtype) if with_bias else None
    return hidden.requires_grad_(), torch.randint(0, V, (N,), generator=generator), weight, bias


@pytest.mark.parametrize("at_a_time", [1, V, 5 * V, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, with_bias: bool
) -> None:
    monkeypatch.setattr(vocabulary, "LOGITS_AT_A_TIME", at_a_time)
    hidden, token, weight, bias = _problem(torch.float32, with_bias)
    slope = torch.linspace(-2, 3, N)
    wanted = log_softmax(linear(hidden, weight, bias), dim=-1).gather(1, token[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((slope * wanted).sum(), hidden)
    found = chosen_logprobs(hidden, token, weight, bias)
    (mine,) = torch.autograd.grad((slope * found).sum(), hidden)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine, gradient, atol=1e-6, rtol=1e-6)


def test_bfloat16_has_float32_values_and_a_bound_of_its_own() -> None:
    hidden, token, weight, bias = _problem(torch.bfloat16, True)
    found = chosen_logprobs(hidden, token, weight, bias)
    wanted = log_softmax(linear(hidden, weight, bias).float(), dim=-1).gather(1, token[:, None])[:, 0]
    (mine,) = torch.autograd.grad(found.sum(), hidden)
    (gradient,) = torch.autograd.grad(wanted.sum(), hidden)
    assert found.dtype == torch.float32 and mine.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine.float(), gradient.float(), atol=0.1, rtol=0.02)


def test_without_a_gradient_none_is_kept_and_nothing_is_asked_of_nothing() -> None:
    hidden, token, weight, bias = _problem(torch.float32, False)
    with torch.no_grad():
        found = chosen_logprobs(hidden, token, weight, bias)
    assert found.grad_fn is None
    assert chosen_logprobs(hidden[:0], token[:0], weight, bias).shape == (0,)


def test_no_more_logits_than_asked_for_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(len(x) * len(weight))
        return linear(x, weight, bias)

    monkeypatch.setattr(vocabulary, "LOGITS_AT_A_TIME", 4 * V)
    monkeypatch.setattr(vocabulary, "linear", watched)
    hidden, token, weight, bias = _problem(torch.float32, False)
    chosen_logprobs(hidden, token, weight, bias).sum().backward()
    assert max(seen) == 4 * V and sum(seen) == N * V
