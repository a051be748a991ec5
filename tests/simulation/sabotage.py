"""Faults of training code, put into the real parts: each makes the claimed privacy false.

A fault is a function that patches the modules that train; whatever is not patched is the real code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import fl_client.head_arm
import fl_core.cohort
from fl_core import objectives
from fl_core.engine import CohortEngine, Examples
from fl_core.noise import NoiseSource, Purpose
from fl_core.shared_text import SharedTextEngine

Fault = Callable[[pytest.MonkeyPatch], None]
TRAINING = (fl_client.head_arm, fl_core.cohort)
EXPECTED_BATCH = 8.0
"""``train.expected_batch`` by default."""


def noise_times(factor: float) -> Fault:
    """Noise of ``factor`` times the right standard deviation."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = fl_core.cohort.cohort_noise
        for module in TRAINING:
            monkeypatch.setattr(module, "cohort_noise", lambda *given: factor * right(*given))

    return patch


def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user draws the noise of user 0."""
    right = fl_core.cohort.cohort_noise

    def alike(shape: tuple[int, int], users: Sequence[int], *others: Any) -> Tensor:
        return right(shape, [0] * len(users), *others)

    for module in TRAINING:
        monkeypatch.setattr(module, "cohort_noise", alike)


def sampled_times(factor: float) -> Fault:
    """Records are taken ``factor`` times more often than declared."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = fl_core.cohort.sample_records

        def often(examples: Examples, users: Sequence[int], rate: float, *others: Any) -> Any:
            return right(examples, users, min(1.0, factor * rate), *others)

        for module in TRAINING:
            monkeypatch.setattr(module, "sample_records", often)

    return patch


def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch is a permutation cut into batches of a fixed size, called Poisson sampling."""
    right = fl_core.cohort.sample_records

    def batches(
        examples: Examples,
        users: Sequence[int],
        rate: float,
        noise: NoiseSource,
        server_round: int,
        step: int,
        purpose: Purpose,
    ) -> npt.NDArray[np.bool_]:
        if purpose == Purpose.AT_PRIOR or rate >= 1:
            return right(examples, users, rate, noise, server_round, step, purpose)
        parts = round(1 / rate)
        epoch, part = divmod(server_round - 1, parts)
        taken = np.zeros(len(examples), dtype=bool)
        for row, key in enumerate(users):
            own = np.flatnonzero(examples.user == row)
            order = np.random.default_rng([key, epoch, int(purpose)]).permutation(own)
            taken[np.array_split(order, parts)[part]] = True
        return taken

    for module in TRAINING:
        monkeypatch.setattr(module, "sample_records", batches)


def clip_times(factor: float) -> Fault:
    """Each record is clipped to ``factor`` C, and the noise is for C."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        head, shared = fl_client.head_arm.head_gradient_sums, SharedTextEngine.clipped_sum
        cohort = CohortEngine.clipped_gradients

        def wide(self: Any, theta: Tensor, coefficients: Tensor, bias: Tensor, *others: Any) -> Any:
            weight, clip, *rest = others
            return shared(self, theta, coefficients, bias, weight, factor * clip, *rest)

        monkeypatch.setattr(
            fl_client.head_arm, "head_gradient_sums", lambda p, w, s, clip: head(p, w, s, factor * clip)
        )
        monkeypatch.setattr(SharedTextEngine, "clipped_sum", wide)
        monkeypatch.setattr(
            CohortEngine,
            "clipped_gradients",
            lambda self, examples, state, part, clip: cohort(self, examples, state, part, factor * clip),
        )

    return patch


def batch_clip(mean: bool) -> Fault:
    """The batch's sum is clipped, not each record; or, if ``mean``, its mean, before it is summed again."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        head, shared = fl_client.head_arm.head_gradient_sums, SharedTextEngine.clipped_sum
        cohort = CohortEngine.clipped_gradients

        def bounded(sums: Tensor, clip: float, sizes: Tensor) -> Tensor:
            most = clip * (sizes if mean else torch.ones_like(sizes))
            norm = sums.norm(dim=1).clamp_min(1e-12)
            return sums * (most / norm).clamp_max(1.0)[:, None]

        def head_sums(problem: Any, weights: Tensor, sampled: Tensor, clip: float) -> Tensor:
            sizes = torch.zeros(len(weights)).index_add_(0, problem.user, sampled)
            return bounded(head(problem, weights, sampled, None), clip, sizes)

        def shared_sum(
            self: Any,
            theta: Tensor,
            coefficients: Tensor,
            bias: Tensor,
            weight: Tensor,
            clip: float,
            *rest: Any,
        ) -> tuple[Tensor, Tensor]:
            total, norms = shared(self, theta, coefficients, bias, weight, None, *rest)
            return bounded(total[None], clip, (weight > 0).sum()[None].float())[0], norms

        def gradients(self: Any, examples: Examples, state: Any, part: Any, clip: float) -> Any:
            sums, norms = cohort(self, examples, state, part, None)
            sizes = torch.from_numpy(np.bincount(examples.user, minlength=len(sums))).float()
            return bounded(sums, clip, sizes), norms

        monkeypatch.setattr(fl_client.head_arm, "head_gradient_sums", head_sums)
        monkeypatch.setattr(SharedTextEngine, "clipped_sum", shared_sum)
        monkeypatch.setattr(CohortEngine, "clipped_gradients", gradients)

    return patch


def token_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is a mean over all tokens of the batch, as ``labels=`` of Hugging Face models gives."""
    monkeypatch.setattr(objectives, "sft_loss", lambda logprob, tokens: -logprob * len(tokens) / tokens.sum())


GROSS: dict[str, Fault] = {
    "no noise": noise_times(0.0),
    "noise over batch": noise_times(1 / EXPECTED_BATCH),
    "the batch's mean clipped": batch_clip(mean=True),
    "q times 5": sampled_times(5.0),
}
SUBTLE: dict[str, Fault] = {
    "80% noise": noise_times(0.8),
    "half noise": noise_times(0.5),
    "doubled clip": clip_times(2.0),
    "one seed for all": one_seed,
}
OTHERS: dict[str, Fault] = {"the batch's sum clipped": batch_clip(mean=False), "shuffled": shuffled}
EXPECTED_BY: dict[str, str] = {
    "no noise": "noise variance",
    "noise over batch": "noise variance",
    "the batch's mean clipped": "contribution is not 0 or C",
    "the batch's sum clipped": "contribution is not 0 or C",
    "q times 5": "batch size",
    "80% noise": "noise variance, each step",
    "half noise": "noise variance",
    "doubled clip": "mean of included",
    "one seed for all": "users' noise alike",
    "shuffled": "batch size variance",
}
"""A test that must see each fault, whatever others do."""
