"""The cohort engine: users trained together on one frozen base, each by its own DP-SGD.

For every user u of the cohort and one step (Abadi et al. 2016, Algorithm 1)

    G_u = sum_{i in batch of u} g_i min(1, C / |g_i|)  +  sigma C N(0, I)                 (1)
    theta_u <- optimizer(theta_u, G_u / L)                                                (2)

where g_i is the gradient of *one example* (a pair is one example: the gradients of its chosen
and its rejected sequence are added before the norm) with respect to all numbers trained in
the step, and L a public constant, never the true number of records.

Contract.  Unit: one record of one user.  Relation: add or remove one record.  Sensitivity of
G_u before noise: C, enforced here by ``clip``, whatever the other examples and users are.
Sampling: whoever calls passes Poisson-sampled examples and charges for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core import objectives
from fl_core.adapted_linear import Need, RowTerm
from fl_core.adapters import DualAdapter, Site
from fl_core.config import TrainConfig
from fl_core.errors import DataError
from fl_core.records import NO_TEXT
from fl_core.trunk import Tokens, Trunk, last_token, pad

Part = Literal["shared", "personal", "both"]


@dataclass(frozen=True)
class Examples:
    """Examples of a cohort: parallel arrays of length E.

    ``user`` indexes the cohort; ``chosen`` and ``rejected`` (or ``NO_TEXT``) index the texts;
    ``label`` is +1 or -1.
    """

    user: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: npt.NDArray[np.int64]) -> Examples:
        """The examples at ``index``."""
        return Examples(self.user[index], self.chosen[index], self.rejected[index], self.label[index])


@dataclass(frozen=True)
class CohortState:
    """Parameters of a cohort of U users.

    ``shared`` [1 or U, D_s] (1: all have the same copy), ``personal`` [U, D_p] and
    ``fusion`` [U, 2], the weights (w_s, w_p).
    """

    shared: Tensor
    personal: Tensor
    fusion: Tensor

    @property
    def users(self) -> int:
        """U."""
        return len(self.personal)


@dataclass(frozen=True)
class _Rows:
    """A micro-batch: the example, and the user, that each sequence belongs to."""

    ids: Tensor
    lengths: Tensor
    response: Tensor
    text: Tensor
    example: Tensor
    user: Tensor


class CohortEngine:
    """Gradients and scores of a cohort on one base.

    ``texts`` are all texts that examples may index.  ``micro_batch_tokens`` bounds the padded
    tokens of one pass.  Results of a user do not depend on who else is in the cohort, but for
    the rounding of matrix products of other sizes.
    """

    def __init__(
        self,
        trunk: Trunk,
        adapter: DualAdapter,
        texts: Sequence[Tokens],
        train: TrainConfig,
        micro_batch_tokens: int = 2048,
    ) -> None:
        self.trunk, self.adapter, self.texts, self.train = trunk, adapter, tuple(texts), train
        self.micro_batch_tokens = micro_batch_tokens
        self.pad_id = int(trunk.base.tokenizer.pad_token_id or 0)
        self._reference: dict[int, float] = {}
        self._sites = {site.name: site for site in (*adapter.sites_shared, *adapter.sites_personal)}

    # Gradients ---------------------------------------------------------------------------

    def clipped_gradients(
        self, examples: Examples, state: CohortState, part: Part, clip: float | None
    ) -> tuple[Tensor, Tensor]:
        """Equation (1) without the noise: ([U, D] sums, [E] unclipped norms).

        D is the size of the trained part (``both``: shared, then personal).  ``clip`` None
        leaves gradients as they are.  A user without an example gets zeros.
        """
        total = torch.zeros(state.users, self._size(part))
        norms = torch.zeros(len(examples))
        for index in self._micro_batches(examples):
            gradient = self.example_gradients(examples.take(index), state, part)
            norm = gradient.norm(dim=1)
            if clip is not None:
                gradient = gradient * (clip / norm.clamp_min(1e-30)).clamp_max(1.0)[:, None]
            total.index_add_(0, torch.from_numpy(examples.user[index]), gradient)
            norms[torch.from_numpy(index)] = norm
        return total, norms

    def example_gradients(self, examples: Examples, state: CohortState, part: Part) -> Tensor:
        """[E, D] float32: each example's own gradient of its loss."""
        rows = self._rows(examples)
        anchor = torch.zeros((), requires_grad=True)
        terms = self._row_terms(rows, state, part)
        hidden = self._prefix(rows)
        with self.trunk.adapted(terms, anchor):
            final = self.trunk.suffix(hidden, rows.lengths)
            head_input = last_token(final, rows.lengths)
        if not final.requires_grad:
            head_input = head_input.detach().requires_grad_()
        values, losses = self._losses(examples, rows, final, head_input, state)
        wanted = (values, *([final] if final.requires_grad else ()))
        row_gradient = torch.autograd.grad(losses.sum(), wanted, retain_graph=final.requires_grad)
        if final.requires_grad:
            final.backward(row_gradient[1])
        return self._collect(examples, rows, state, part, terms, head_input.detach(), row_gradient[0])

    def _losses(
        self, examples: Examples, rows: _Rows, final: Tensor, head_input: Tensor, state: CohortState
    ) -> tuple[Tensor, Tensor]:
        """(row values [N], example losses [E]); values are scores or log-probabilities."""
        values = self._row_values(rows, final, head_input, state)
        count = len(examples)
        chosen = values[:count]
        pairs = torch.from_numpy(np.flatnonzero(examples.rejected != NO_TEXT))
        label = torch.from_numpy(examples.label).float()
        kind, beta = self.train.objective, self.train.beta
        if kind == "reward":
            losses = objectives.vote_loss(chosen, label)
            if len(pairs):
                losses = losses.index_put((pairs,), objectives.bradley_terry_loss(chosen[pairs], values[count:]))
            return values, losses
        if kind == "sft":
            return values, objectives.sft_loss(chosen, rows.response[:count, 1:].sum(1))
        reference = self.reference_logprobs(rows.text.tolist())
        if kind == "kto":
            losses = objectives.kto_loss(chosen, reference[:count], label, beta)
            if len(pairs):
                other = objectives.kto_loss(values[count:], reference[count:], -label[pairs], beta)
                losses = losses.index_add(0, pairs, other)
            return values, losses
        if len(pairs) < count:
            raise DataError("train.objective='dpo': needs pairs, but some records are votes; use 'kto' or 'reward'")
        return values, objectives.dpo_loss(chosen, values[count:], reference[:count], reference[count:], beta)

    def _row_values(self, rows: _Rows, final: Tensor, head_input: Tensor, state: CohortState) -> Tensor:
        if self.train.objective != "reward":
            return self.trunk.response_logprobs(final, rows.ids, rows.response)
        vector = self.adapter.head_vector(state.shared, state.personal, state.fusion)
        bias = self.adapter.head_bias(state.shared, state.personal, state.fusion)
        return (head_input * vector[rows.user]).sum(1) + bias[rows.user]

    def _collect(
        self,
        examples: Examples,
        rows: _Rows,
        state: CohortState,
        part: Part,
        terms: dict[str, tuple[RowTerm, ...]],
        head_input: Tensor,
        row_gradient: Tensor,
    ) -> Tensor:
        """Fold rows into examples and pull effective gradients back to the trained numbers."""
        user = torch.from_numpy(examples.user)
        shared = torch.zeros(len(examples), self.adapter.shared_layout.size if part != "personal" else 0)
        personal = torch.zeros(len(examples), self.adapter.personal_layout.size if part != "shared" else 0)
        pull = _PullBack(self.adapter, state, user, shared, personal, part)
        for name, row_terms in terms.items():
            folded = [(self._fold(t.grad_a, rows, len(examples)), self._fold(t.grad_b, rows, len(examples))) for t in row_terms]
            pull.site(self._sites[name], folded)
        if self.train.objective == "reward":
            phi = self._fold(head_input * row_gradient[:, None], rows, len(examples))
            bias = self._fold(row_gradient[:, None], rows, len(examples))
            assert phi is not None and bias is not None
            pull.head(phi, bias)
        return torch.cat([shared, personal], dim=1)

    @staticmethod
    def _fold(gradient: Tensor | None, rows: _Rows, count: int) -> Tensor | None:
        """[N, ...] per row -> [E, ...] per example, in float32: both sequences of a pair add up."""
        if gradient is None:
            return None
        out = torch.zeros(count, *gradient.shape[1:])
        return out.index_add_(0, rows.example, gradient.float())

    def _row_terms(self, rows: _Rows, state: CohortState, part: Part) -> dict[str, tuple[RowTerm, ...]]:
        """Each site's terms; shared first, then personal, with the gradients that ``part`` needs."""
        terms: dict[str, tuple[RowTerm, ...]] = {}
        for site in self._sites.values():
            own = self.adapter.personal
            shared_need = Need(part != "personal" and self.adapter.shared.kind == "lora", part != "personal")
            mixed = own is not None and own.kind == "components"
            trained = part != "shared"
            personal_need = Need(
                trained and own is not None and own.kind in ("lora", "subspace"),
                mixed or (trained and own is not None and own.kind in ("lora", "b_only")),
            )
            pair = (
                (self.adapter.shared_term(site, state.shared, state.fusion[:, 0]), shared_need),
                (self.adapter.personal_term(site, state.shared, state.personal, state.fusion[:, 1]), personal_need),
            )
            weights = (state.fusion[:, 0], state.fusion[:, 1])
            kept = []
            for (term, need), weight in zip(pair, weights, strict=True):
                if term is None or bool((weight == 0).all()):
                    continue
                a = term.a[rows.user] if len(term.a) > 1 else term.a
                b = term.b[rows.user] if len(term.b) > 1 else term.b
                kept.append(RowTerm(a, b, need))
            terms[site.name] = tuple(kept)
        return terms

    # Scores ------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(
        self, user: npt.NDArray[np.int64], text: npt.NDArray[np.int64], state: CohortState
    ) -> Tensor:
        """[E] float32: user ``user[i]``'s score of text ``text[i]``.

        Reward models: the reward.  Otherwise the implicit reward, log p_u - log p_base of the
        response in nats (Rafailov et al. 2023, section 4).
        """
        values = torch.zeros(len(text))
        rejected = np.full(len(text), NO_TEXT)
        examples = Examples(user, text, rejected, np.ones(len(text), dtype=np.int64))
        for index in self._micro_batches(examples):
            rows = self._rows(examples.take(index))
            with self.trunk.adapted(self._row_terms(rows, state, "both")):
                final = self.trunk.suffix(self._prefix(rows), rows.lengths)
            value = self._row_values(rows, final, last_token(final, rows.lengths), state)
            if self.train.objective != "reward":
                value = value - self.reference_logprobs(rows.text.tolist())
            values[torch.from_numpy(index)] = value
        return values

    @torch.no_grad()
    def reference_logprobs(self, texts: Sequence[int]) -> Tensor:
        """[N] log-probabilities of the base model; each distinct text is computed once."""
        missing = np.array(sorted({text for text in texts if text not in self._reference}), dtype=np.int64)
        fake = Examples(np.zeros_like(missing), missing, np.full_like(missing, NO_TEXT), np.ones_like(missing))
        for index in self._micro_batches(fake):
            rows = self._rows(fake.take(index))
            with self.trunk.adapted({}):
                final = self.trunk.suffix(self._prefix(rows), rows.lengths)
            logprobs = self.trunk.response_logprobs(final, rows.ids, rows.response)
            self._reference.update(zip(missing[index].tolist(), logprobs.tolist(), strict=True))
        return torch.tensor([self._reference[text] for text in texts])

    # Batches -----------------------------------------------------------------------------

    def _prefix(self, rows: _Rows) -> Tensor:
        return self.trunk.prefix(rows.ids, rows.lengths)

    def _rows(self, examples: Examples) -> _Rows:
        """Rows of a micro-batch: every example's chosen text, then the pairs' rejected ones."""
        pairs = np.flatnonzero(examples.rejected != NO_TEXT)
        if self.train.objective == "sft":
            pairs = pairs[:0]
        text = np.concatenate([examples.chosen, examples.rejected[pairs]])
        example = np.concatenate([np.arange(len(examples)), pairs])
        ids, lengths, response = pad([self.texts[int(t)] for t in text], self.pad_id)
        user = torch.from_numpy(examples.user[example])
        return _Rows(ids, lengths, response, torch.from_numpy(text), torch.from_numpy(example), user)

    def _micro_batches(self, examples: Examples) -> Iterator[npt.NDArray[np.int64]]:
        """Indices of examples of like length whose padded tokens stay under the bound."""
        lengths = np.array([len(text.ids) for text in self.texts])
        both = examples.rejected != NO_TEXT
        width = np.where(both, np.maximum(lengths[examples.chosen], lengths[examples.rejected]), lengths[examples.chosen])
        order = np.argsort(width, kind="stable")[::-1]
        start = 0
        while start < len(order):
            widest = int(width[order[start]])
            rows = np.cumsum(1 + both[order[start:]])
            count = max(1, int(np.searchsorted(rows * widest, self.micro_batch_tokens, side="right")))
            yield np.sort(order[start : start + count])
            start += count

    def _size(self, part: Part) -> int:
        sizes = (self.adapter.shared_layout.size, self.adapter.personal_layout.size)
        return {"shared": sizes[0], "personal": sizes[1], "both": sum(sizes)}[part]


class _PullBack:
    """The chain rule from a site's effective (A, B) to the numbers that are trained.

    ``shared`` [E, D_s or 0] and ``personal`` [E, D_p or 0] are written in place; ``user`` [E].
    """

    def __init__(
        self, adapter: DualAdapter, state: CohortState, user: Tensor, shared: Tensor, personal: Tensor, part: Part
    ) -> None:
        self.adapter, self.state, self.user = adapter, state, user
        self.shared, self.personal, self.part = shared, personal, part
        self.weight = state.fusion[user if len(state.fusion) > 1 else torch.zeros_like(user)]

    def _own(self, flat: Tensor, layout_view: Tensor) -> Tensor:
        """A parameter part [U or 1, ...] seen by each example."""
        return layout_view[self.user] if len(flat) > 1 else layout_view

    def _write(self, which: Literal["shared", "personal"], name: str, value: Tensor) -> None:
        layout = self.adapter.shared_layout if which == "shared" else self.adapter.personal_layout
        target = self.shared if which == "shared" else self.personal
        layout.view(target, name).add_(value)

    def site(self, site: Site, folded: list[tuple[Tensor | None, Tensor | None]]) -> None:
        """Pull one site's folded gradients back; ``folded`` in the order of the site's terms."""
        queue = list(folded)
        if site in self.adapter.sites_shared and bool((self.state.fusion[:, 0] != 0).any()):
            grad_a, grad_b = queue.pop(0)
            if self.part != "personal":
                self._shared_site(site, grad_a, grad_b)
        if queue:
            self._personal_site(site, *queue[0])

    def _shared_site(self, site: Site, grad_a: Tensor | None, grad_b: Tensor | None) -> None:
        scale = (self.adapter.shared.scale * self.weight[:, 0])[:, None, None]
        assert grad_b is not None
        self._write("shared", f"trunk.{site.name}.B", grad_b * scale)
        if grad_a is not None:
            self._write("shared", f"trunk.{site.name}.A", grad_a)

    def _personal_site(self, site: Site, grad_a: Tensor | None, grad_b: Tensor | None) -> None:
        spec = self.adapter.personal
        assert spec is not None
        if spec.kind == "components":
            assert grad_b is not None
            self._component_site(site, grad_b)
        elif self.part == "shared":
            return
        elif spec.kind == "subspace":
            assert grad_a is not None
            self._write("personal", f"trunk.{site.name}.R", grad_a @ self.adapter.public(f"personal.{site.name}.V").T)
        else:
            assert grad_b is not None
            scale = (spec.scale * self.weight[:, 1])[:, None, None]
            self._write("personal", f"trunk.{site.name}.B", grad_b * scale)
            if grad_a is not None:
                self._write("personal", f"trunk.{site.name}.A", grad_a)

    def _component_site(self, site: Site, grad_b: Tensor) -> None:
        shared = self.adapter.shared
        parts = grad_b.unflatten(2, (shared.components, shared.rank)).transpose(1, 2)
        scale = shared.scale * self.weight[:, 1]
        if self.part != "personal":
            mixing = self.adapter.personal_layout.view(self.state.personal, "weights")[self.user]
            self._write("shared", f"components.{site.name}.B", parts * (mixing * scale[:, None])[:, :, None, None])
        if self.part != "shared":
            own = self.adapter.shared_layout.view(self.state.shared, f"components.{site.name}.B")
            own = self._own(self.state.shared, own)
            self._write("personal", "weights", (parts * own).flatten(2).sum(2) * scale[:, None])

    def head(self, phi: Tensor, bias: Tensor) -> None:
        """``phi`` [E, d]: sum over an example's rows of dL/dscore * phi; ``bias`` [E, 1]."""
        phi = phi / self.adapter.hidden**0.5
        spec, shared, personal = self.adapter.personal, self.state.shared, self.state.personal
        if self.part != "personal":
            self._write("shared", "head.common", phi * self.weight[:, :1])
            self._write("shared", "head.bias", bias * self.weight[:, :1])
            if self.adapter.shared_layout.holds("head.components") and spec is not None and spec.kind == "components":
                mixing = self.adapter.personal_layout.view(personal, "weights")[self.user]
                self._write("shared", "head.components", (mixing * self.weight[:, 1:])[:, :, None] * phi[:, None])
        if self.part == "shared" or spec is None:
            return
        own = phi * self.weight[:, 1:]
        self._write("personal", "head.bias", bias * self.weight[:, 1:])
        if spec.kind == "components":
            parts = self._own(shared, self.adapter.shared_layout.view(shared, "head.components"))
            self._write("personal", "weights", (parts * own[:, None]).sum(2))
        elif spec.kind == "subspace":
            self._write("personal", "head.R", own @ self.adapter.public("personal.head").T)
        else:
            self._write("personal", "head.vector", own)
