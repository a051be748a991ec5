"""One text, many users: exact cohort gradients where users share texts and differ in the head.

With a reward head every user's score is linear in what differs between users,

    r_u(s) = c_u . H phi(s),     H = [v_0; P],   c_u = (w_s, w_p w_u),                      (1)

where P [R, d] holds the directions that the personal adapter mixes (the components, or a
public basis) and phi(s) is the same for everybody.  So one forward pass a distinct text and
R + 1 backward passes, J_k(s) = d(H_k . phi(s))/d theta, give every example's gradient

    g_i = l'_i  c_u . (J(chosen) - J(rejected))                                            (2)

and its norm through the Gram matrix of J: per-example clipping stays exact (it agrees with
``CohortEngine``; a test holds them together) at the cost of a small matrix product an example.
The contract is that of ``fl_core.engine``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core.adapted_linear import Need, RowTerm
from fl_core.adapters import DualAdapter
from fl_core.engine import CohortState, Examples
from fl_core.records import NO_TEXT
from fl_core.trunk import Tokens, Trunk, last_token, pad

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextTable:
    """What a pass knows of every text: ``features`` phi [S, d] float32."""

    features: Tensor


@dataclass(frozen=True)
class _Block:
    """Texts that are computed together; no pair reaches into another block."""

    texts: Index
    examples: Index


class SharedTextEngine:
    """Shared-adapter gradients and features over a fixed set of texts.

    ``examples`` are all examples that may ever be used, so that texts which pairs connect
    come into one block.  ``block_tokens`` bounds the padded tokens of one pass, and
    ``cache_bytes`` the kept prefix activations (beyond it they are computed again).
    """

    def __init__(
        self,
        trunk: Trunk,
        adapter: DualAdapter,
        texts: Sequence[Tokens],
        examples: Examples,
        block_tokens: int = 4096,
        cache_bytes: int = 4 * 2**30,
    ) -> None:
        if adapter.personal_in_trunk():
            raise ValueError("SharedTextEngine: the personal adapter must live in the head alone")
        self.trunk, self.adapter, self.texts = trunk, adapter, tuple(texts)
        self.pad_id = int(trunk.base.tokenizer.pad_token_id or 0)
        self.examples = examples
        self.blocks = list(_blocks(texts, examples, block_tokens))
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self._cache_left = cache_bytes

    # Passes ------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, shared: Tensor, w_s: float = 1.0) -> TextTable:
        """phi of every text under the shared vector [D_s]."""
        phi = torch.zeros(len(self.texts), self.adapter.hidden)
        for number, block in enumerate(self.blocks):
            hidden, lengths = self._hidden(number, block)
            with self.trunk.adapted(self._terms(shared, w_s, needed=False)):
                phi[torch.from_numpy(block.texts)] = last_token(self.trunk.suffix(hidden, lengths), lengths)
        return TextTable(phi)

    def clipped_sum(
        self,
        shared: Tensor,
        coefficients: Tensor,
        bias: Tensor,
        weight: Tensor,
        clip: float | None,
        only: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[Tensor, TextTable, Tensor]:
        """Sum over examples of weight_i * clipped g_i: ([D_s], features, norms [E]).

        ``coefficients`` [E, R+1] and ``bias`` [E] are each example's c_u and its user's
        bias; ``weight`` [E]
        multiplies after clipping (0: not sampled).  ``only`` [E] marks the examples that are
        clipped (others, public ones, are not).
        """
        total = torch.zeros(self.adapter.shared_layout.size)
        phi = torch.zeros(len(self.texts), self.adapter.hidden)
        norms = torch.zeros(len(self.examples))
        head = self.head_rows(shared)
        clipped = torch.ones(len(self.examples), dtype=torch.bool) if only is None else torch.from_numpy(only)
        for number, block in enumerate(self.blocks):
            index = torch.from_numpy(block.examples)
            part = self._block_pass(number, block, shared, head, coefficients[index], bias[index])
            phi[torch.from_numpy(block.texts)] = part.phi
            factor = weight[index].clone()
            if clip is not None:
                norms[index] = part.norms()
                factor *= torch.where(clipped[index], (clip / norms[index].clamp_min(1e-30)).clamp_max(1.0), 1.0)
            part.add_sum(total, factor)
        return total, TextTable(phi), norms

    def head_rows(self, shared: Tensor) -> Tensor:
        """H [R+1, d], 1/sqrt(d) included: the common head, then the personal directions."""
        common = self.adapter.shared_layout.view(shared, "head.common")[None]
        return torch.cat([common, personal_directions(self.adapter, shared)]) / self.adapter.hidden**0.5

    def _block_pass(
        self, number: int, block: _Block, shared: Tensor, head: Tensor, coefficients: Tensor, bias: Tensor
    ) -> _BlockPass:
        hidden, lengths = self._hidden(number, block)
        terms = self._terms(shared, 1.0, needed=True)
        with self.trunk.adapted(terms, torch.zeros((), requires_grad=True)):
            final = self.trunk.suffix(hidden, lengths)
        phi = last_token(final, lengths).detach()
        place = {int(text): row for row, text in enumerate(block.texts)}
        rows = self.examples.take(block.examples)
        chosen = torch.tensor([place[int(t)] for t in rows.chosen], dtype=torch.int64)
        rejected = torch.tensor([place.get(int(t), -1) for t in rows.rejected], dtype=torch.int64)
        label = torch.from_numpy(rows.label).float()
        return _BlockPass(
            self.adapter, final, lengths, terms, phi, head, chosen, rejected, label, coefficients, bias
        )

    def _terms(self, shared: Tensor, w_s: float, needed: bool) -> dict[str, tuple[RowTerm, ...]]:
        terms: dict[str, tuple[RowTerm, ...]] = {}
        lora = self.adapter.shared.kind == "lora"
        for site in self.adapter.sites_shared if w_s else ():
            term = self.adapter.shared_term(site, shared[None], torch.tensor([w_s]))
            assert term is not None
            terms[site.name] = (RowTerm(term.a, term.b, Need(a=needed and lora, b=needed)),)
        return terms

    def _hidden(self, number: int, block: _Block) -> tuple[Tensor, Tensor]:
        if number in self._prefix:
            return self._prefix[number]
        ids, lengths, _ = pad([self.texts[int(t)] for t in block.texts], self.pad_id)
        hidden = self.trunk.prefix(ids, lengths)
        size = hidden.numel() * hidden.element_size()
        if size <= self._cache_left:
            self._cache_left -= size
            self._prefix[number] = (hidden, lengths)
        return hidden, lengths


def personal_directions(adapter: DualAdapter, shared: Tensor) -> Tensor:
    """P [R, d]: the directions that a head-only personal adapter mixes; R = 0 without one."""
    if adapter.personal is None:
        return torch.zeros(0, adapter.hidden)
    if adapter.personal.kind == "components":
        return adapter.shared_layout.view(shared, "head.components")
    if adapter.personal.kind == "subspace":
        return adapter.public("personal.head")
    return torch.eye(adapter.hidden)


class _BlockPass:
    """One block after its forward pass: scores, norms and sums of its examples."""

    def __init__(
        self,
        adapter: DualAdapter,
        final: Tensor,
        lengths: Tensor,
        terms: dict[str, tuple[RowTerm, ...]],
        phi: Tensor,
        head: Tensor,
        chosen: Tensor,
        rejected: Tensor,
        label: Tensor,
        coefficients: Tensor,
        bias: Tensor,
    ) -> None:
        self.adapter, self.final, self.lengths, self.terms = adapter, final, lengths, terms
        self.phi, self.head, self.chosen, self.rejected = phi, head, chosen, rejected
        self.coefficients = coefficients
        self.pair = rejected >= 0
        value = coefficients @ (phi @ head.T).T
        score = value.gather(1, chosen[:, None])[:, 0]
        other = value.gather(1, rejected.clamp_min(0)[:, None])[:, 0]
        margin = torch.where(self.pair, score - other, label * (score + bias))
        self.slope = -torch.sigmoid(-margin) * label
        self._jacobian: Tensor | None = None

    def _jacobians(self) -> Tensor:
        """J [n, R+1, P] over the trunk's shared numbers (P may be 0)."""
        if self._jacobian is None:
            rows = [self._row_gradients(direction.expand_as(self.phi), keep=True) for direction in self.head]
            self._jacobian = torch.stack(rows, dim=1)
        return self._jacobian

    def _row_gradients(self, at_last: Tensor, keep: bool) -> Tensor:
        """[n, P]: each text's gradient of (at_last . phi)."""
        if not self.final.requires_grad:
            return torch.zeros(len(self.phi), 0)
        seed = torch.zeros_like(self.final)
        seed[torch.arange(len(self.phi)), self.lengths - 1] = at_last.to(seed.dtype)
        self.final.backward(seed, retain_graph=keep)
        parts = []
        for site in self.adapter.sites_shared:
            term = self.terms[site.name][0]
            assert term.grad_b is not None
            if term.grad_a is not None:
                parts.append(term.grad_a.flatten(1).float())
            parts.append(term.grad_b.flatten(1).float() * self.adapter.shared.scale)
        return torch.cat(parts, dim=1)

    def _feature_difference(self) -> Tensor:
        other = self.phi[self.rejected.clamp_min(0)] * self.pair[:, None]
        return self.phi[self.chosen] - other

    def norms(self) -> Tensor:
        """[E] norms of g_i over all shared numbers: trunk, head and bias."""
        jacobian = self._jacobians()
        n, k = jacobian.shape[:2]
        flat = jacobian.flatten(0, 1)
        gram = (flat @ flat.T).view(n, k, n, k).transpose(1, 2)
        c, r = self.chosen, self.rejected.clamp_min(0)
        both = gram[c, c] + self.pair[:, None, None] * (gram[r, r] - gram[c, r] - gram[r, c])
        trunk = torch.einsum("ek,ekl,el->e", self.coefficients, both, self.coefficients).clamp_min(0.0)
        trained = self._trained_heads()
        head = self._feature_difference().square().sum(1) / self.adapter.hidden
        head = head * self.coefficients[:, :trained].square().sum(1)
        return self.slope.abs() * (trunk + head + (~self.pair).float()).sqrt()

    def _trained_heads(self) -> int:
        """How many rows of H are shared numbers: v_0 and, if components, all."""
        own = self.adapter.personal
        return len(self.head) if own is not None and own.kind == "components" else 1

    def add_sum(self, total: Tensor, factor: Tensor) -> None:
        """Add sum_i factor_i g_i to ``total`` [D_s]."""
        layout = self.adapter.shared_layout
        beta = (self.slope * factor)[:, None] * self.coefficients
        alpha = torch.zeros(len(self.phi), len(self.head)).index_add_(0, self.chosen, beta)
        alpha.index_add_(0, self.rejected.clamp_min(0), -beta * self.pair[:, None])
        trunk = self._trunk_sum(alpha)
        if trunk is not None:
            total[: len(trunk)] += trunk
        heads = alpha.T @ self.phi / self.adapter.hidden**0.5
        layout.view(total, "head.common").add_(heads[0])
        if layout.holds("head.components") and self._trained_heads() > 1:
            layout.view(total, "head.components").add_(heads[1:])
        layout.view(total, "head.bias").add_((self.slope * factor * ~self.pair).sum())

    def _trunk_sum(self, alpha: Tensor) -> Tensor | None:
        if not self.final.requires_grad:
            return None
        if self._jacobian is not None:
            return torch.einsum("nk,nkp->p", alpha, self._jacobian)
        return self._row_gradients(alpha @ self.head, keep=False).sum(0)


def _blocks(texts: Sequence[Tokens], examples: Examples, block_tokens: int) -> Iterator[_Block]:
    """Pack texts, of like length, into blocks; texts that a pair connects stay together."""
    group = _connected(len(texts), examples)
    lengths = np.array([len(text.ids) for text in texts])
    used = np.zeros(len(texts), dtype=bool)
    used[examples.chosen] = True
    used[examples.rejected[examples.rejected != NO_TEXT]] = True
    members: dict[int, list[int]] = {}
    for text in range(len(texts)):
        members.setdefault(int(group[text]) if used[text] else -1 - text, []).append(text)
    ordered = sorted(members.values(), key=lambda group: (int(lengths[group].max()), group[0]))
    of_text = np.zeros(len(texts), dtype=np.int64)
    packed: list[list[int]] = []
    for texts_of_group in ordered:
        width = int(lengths[texts_of_group].max())
        if not packed or (len(packed[-1]) + len(texts_of_group)) * width > block_tokens:
            packed.append([])
        packed[-1] += texts_of_group
    for number, block in enumerate(packed):
        of_text[block] = number
    of_example = of_text[examples.chosen]
    order = np.argsort(of_example, kind="stable")
    bounds = np.searchsorted(of_example[order], np.arange(len(packed) + 1))
    for number, block in enumerate(packed):
        yield _Block(np.array(block, dtype=np.int64), order[bounds[number] : bounds[number + 1]])


def _connected(count: int, examples: Examples) -> Index:
    """A label for each text, equal for texts that pairs connect."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = examples.rejected != NO_TEXT
    edges = (examples.chosen[pairs], examples.rejected[pairs])
    graph = coo_matrix((np.ones(int(pairs.sum())), edges), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return np.asarray(labels, dtype=np.int64)


# The personal side: a small convex problem a user ------------------------------------------


@dataclass(frozen=True)
class HeadExamples:
    """Examples of a cohort as seen by a head-only personal adapter, linear in its numbers.

    margin_i = offset_i + z_i . w_u;  ``z`` [E, R+1] (the bias last: label for votes, 0 for
    pairs), ``offset`` [E] the shared adapter's margin, ``user`` [E] index into the cohort.
    """

    user: Tensor
    z: Tensor
    offset: Tensor


def head_examples(adapter: DualAdapter, shared: Tensor, table: TextTable, examples: Examples) -> HeadExamples:
    """Each example's margin as a linear function of its user's personal numbers."""
    pair = torch.from_numpy(examples.rejected != NO_TEXT)
    label = torch.from_numpy(examples.label).float()
    chosen, rejected = torch.from_numpy(examples.chosen), torch.from_numpy(examples.rejected).clamp_min(0)
    root = adapter.hidden**0.5
    own = table.features @ personal_directions(adapter, shared).T / root
    common = table.features @ adapter.shared_layout.view(shared, "head.common") / root
    bias = adapter.shared_layout.view(shared, "head.bias")[0]
    z = torch.where(pair[:, None], own[chosen] - own[rejected], label[:, None] * own[chosen])
    offset = torch.where(pair, common[chosen] - common[rejected], label * (common[chosen] + bias))
    z = torch.cat([z, torch.where(pair, 0.0, label)[:, None]], dim=1)
    return HeadExamples(torch.from_numpy(examples.user), z, offset)


def head_gradient_sums(problem: HeadExamples, weights: Tensor, sampled: Tensor, clip: float | None) -> Tensor:
    """[U, R+1]: per user, the sum over sampled examples of clipped gradients of -log sigma(margin).

    Contract: as in ``fl_core.engine``; sensitivity ``clip`` for one record of a user.
    """
    margin = problem.offset + (problem.z * weights[problem.user]).sum(1)
    gradient = -torch.sigmoid(-margin)[:, None] * problem.z
    if clip is not None:
        gradient = gradient * (clip / gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    return torch.zeros_like(weights).index_add_(0, problem.user, gradient * sampled[:, None])


def newton_step(problem: HeadExamples, weights: Tensor, sampled: Tensor, precision: float) -> Tensor:
    """One Newton step of every user's penalised logistic problem (without DP).

    Minimises sum_i -log sigma(margin_i) + precision/2 |w_u|^2, a Gaussian prior around 0.
    Returns new weights [U, R+1].
    """
    users, width = weights.shape
    margin = problem.offset + (problem.z * weights[problem.user]).sum(1)
    p = torch.sigmoid(-margin) * sampled
    gradient = torch.zeros(users, width).index_add_(0, problem.user, -p[:, None] * problem.z)
    curvature = torch.sigmoid(-margin) * torch.sigmoid(margin) * sampled
    outer = (curvature[:, None] * problem.z)[:, :, None] * problem.z[:, None, :]
    hessian = torch.zeros(users, width * width).index_add_(0, problem.user, outer.flatten(1))
    hessian = hessian.view(users, width, width) + precision * torch.eye(width)
    return weights - torch.linalg.solve(hessian, gradient + precision * weights)
