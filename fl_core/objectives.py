"""Losses of single examples: pure functions of scores or of response log-probabilities.

Every function takes [E] tensors and returns the [E] losses of E examples.  None looks at
another example, which per-example clipping needs: a mean over a batch's tokens, as in the
``labels=`` loss of Hugging Face models, would make one example's gradient depend on others.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def vote_loss(score: Tensor, label: Tensor) -> Tensor:
    """Pointwise logistic loss of a vote or thumb: -log sigma(label * score), label +1 or -1."""
    return -logsigmoid(label * score)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigma(r(chosen) - r(rejected)) (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1)."""
    return -logsigmoid(chosen - rejected)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) of summed response log-probabilities, in nats."""
    return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def kto_loss(logprob: Tensor, reference: Tensor, label: Tensor, beta: float) -> Tensor:
    """KTO (Ethayarajh et al. 2024, eq. 8) with lambda = 1 and the reference point z_0 = 0.

    The paper estimates z_0 from the other examples of the batch; that would couple examples
    and void the per-example bound, so the point is fixed (a deviation).  [E] in [0, 1].
    """
    return 1.0 - (beta * label * (logprob - reference)).sigmoid()


def sft_loss(logprob: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood a response token of each example; ``tokens`` [E] > 0."""
    return -logprob / tokens
