"""Equations (1) and (2) of ``fl_core.adapters`` written out, one text and one example at a time.

The slow reference: no batch, no padding, no cut of the model, no hand-written backward pass.
Gradients are PyTorch's own, of float32 leaves that hold the two flat vectors.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from fl_core.adapters import DualAdapter
from fl_core.base_model import BaseModel
from fl_core.engine import Examples
from fl_core.records import NO_TEXT
from fl_core.trunk import Tokens


class LiteralLinear(nn.Module):
    """W x + w_s s_s B_s A_s x + w_p s_p B_p A_p x for one user, by the kinds' definitions."""

    def __init__(self, frozen: nn.Module, name: str, model: LiteralModel) -> None:
        super().__init__()
        self.frozen, self.name = frozen, name
        object.__setattr__(self, "model", model)

    def forward(self, x: Tensor) -> Tensor:
        m, name, y = self.model, self.name, self.frozen(x)
        if m.adapting and any(name == site.name for site in m.adapter.sites_shared):
            y = y + (m.w_s * m.adapter.shared.scale * self.shared(x)).to(y.dtype)
        if m.adapting and m.adapter.personal is not None:
            own = self.personal(x)
            if own is not None:
                y = y + (m.w_p * own).to(y.dtype)
        return y

    def shared(self, x: Tensor) -> Tensor:
        m, name = self.model, self.name
        b = m.part("shared", f"trunk.{name}.B")
        if m.adapter.shared.kind == "lora":
            a = m.part("shared", f"trunk.{name}.A")
        else:
            a = m.adapter.public(f"shared.{name}.A")
        return (x.to(a.dtype) @ a.T) @ b.T

    def personal(self, x: Tensor) -> Tensor | None:
        m, name, spec = self.model, self.name, self.model.adapter.personal
        if spec.kind == "components":
            if not any(name == site.name for site in m.adapter.component_sites):
                return None
            weights, parts = m.part("personal", "weights"), m.part("shared", f"components.{name}.B")
            rank, total = m.adapter.shared.rank, 0.0
            for k in range(m.adapter.shared.components):
                a_k = m.adapter.public(f"components.{name}.A")[k * rank : (k + 1) * rank]
                total = total + weights[k] * ((x.to(a_k.dtype) @ a_k.T) @ parts[k].T)
            return m.adapter.shared.scale * total
        if not any(name == site.name for site in m.adapter.sites_personal):
            return None
        if spec.kind == "subspace":
            u, v = m.adapter.public(f"personal.{name}.U"), m.adapter.public(f"personal.{name}.V")
            return spec.scale * (((x.to(v.dtype) @ v.T) @ m.part("personal", f"trunk.{name}.R").T) @ u.T)
        a = m.adapter.public(f"personal.{name}.A")
        if spec.kind == "lora":
            a = m.part("personal", f"trunk.{name}.A")
        return spec.scale * ((x.to(a.dtype) @ a.T) @ m.part("personal", f"trunk.{name}.B").T)


class LiteralModel:
    """A copy of the base with ``LiteralLinear`` layers, for one user at a time."""

    def __init__(self, base: BaseModel, adapter: DualAdapter) -> None:
        self.adapter = adapter
        self.shared_leaf = self.personal_leaf = torch.zeros(0)
        self.w_s, self.w_p, self.adapting = 1.0, 1.0, True
        self.model = copy.deepcopy(base.model)
        decoder = self.model.get_decoder()
        layers = decoder.layers if hasattr(decoder, "layers") else decoder.h
        for name in {site.name for site in (*adapter.sites_shared, *adapter.sites_personal)}:
            number, _, path = name.partition(".")
            parent = layers[int(number)].get_submodule(path.rpartition(".")[0])
            last = path.rpartition(".")[2]
            setattr(parent, last, LiteralLinear(getattr(parent, last), name, self))

    def become(self, shared: Tensor, personal: Tensor, fusion: Tensor) -> LiteralModel:
        """Take one user's vectors [D_s], [D_p] and (w_s, w_p)."""
        self.shared_leaf = shared.detach().clone().requires_grad_()
        self.personal_leaf = personal.detach().clone().requires_grad_()
        self.w_s, self.w_p = float(fusion[0]), float(fusion[1])
        return self

    def part(self, which: str, name: str) -> Tensor:
        layout = self.adapter.shared_layout if which == "shared" else self.adapter.personal_layout
        flat = self.shared_leaf if which == "shared" else self.personal_leaf
        return flat[layout.slices[name]].reshape(dict(layout.shapes)[name])

    def score(self, text: Tokens) -> Tensor:
        """Equation (2)."""
        decoder = self.model.get_decoder()
        phi = self.features(decoder(input_ids=torch.tensor([text.ids]), use_cache=False)[0][0].float(), text)
        vector = self.w_s * self.part("shared", "head.common")
        bias = self.w_s * self.part("shared", "head.bias")[0]
        kind = self.adapter.personal.kind if self.adapter.personal is not None else None
        if kind == "components":
            for k in range(self.adapter.shared.components):
                v_k = self.part("shared", "head.components")[k]
                vector = vector + self.w_p * self.part("personal", "weights")[k] * v_k
        elif kind == "subspace":
            vector = vector + self.w_p * (
                self.part("personal", "head.R") @ self.adapter.public("personal.head")
            )
        elif kind is not None:
            vector = vector + self.w_p * self.part("personal", "head.vector")
        if kind is not None:
            bias = bias + self.w_p * self.part("personal", "head.bias")[0]
        return (vector * phi).sum() / math.sqrt(self.adapter.hidden) + bias

    def features(self, final: Tensor, text: Tokens) -> Tensor:
        """phi [F] of final hidden states [T, d]: last token, or that and the response's mean."""
        features, phi = self.adapter.features, final[-1]
        if features.pooling == "last-mean":
            phi = torch.cat([phi, final[list(text.response)].mean(0)])
        if features.whiten is None:
            return phi
        centred = phi - features.centre
        phi = centred @ features.whiten
        if features.gate is None:
            return phi
        share = torch.sigmoid(features.gate[:-1] @ centred + features.gate[-1])
        both = [part for value in phi for part in (value * (1 - share).sqrt(), value * share.sqrt())]
        return torch.stack(both)[: features.width]

    def logprob(self, text: Tokens, adapting: bool = True) -> Tensor:
        """Sum of log p of the response's tokens."""
        self.adapting = adapting
        logits = self.model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0].float()
        self.adapting = True
        total = torch.zeros(())
        for t in range(1, len(text.ids)):
            if text.response[t]:
                total = total + logits[t - 1].log_softmax(-1)[text.ids[t]]
        return total

    def loss(self, objective: str, texts: tuple[Tokens, ...], example: Examples, beta: float) -> Tensor:
        """The loss of the single example in ``example``."""
        chosen, label = texts[int(example.chosen[0])], float(example.label[0])
        pair = int(example.rejected[0]) != NO_TEXT
        other = texts[int(example.rejected[0])]
        if objective == "reward":
            margin = self.score(chosen) - self.score(other) if pair else label * self.score(chosen)
            return torch.log1p(torch.exp(-margin))
        if objective == "sft":
            return (
                -self.logprob(chosen) / sum(chosen.response[1:]) if label > 0 else 0.0 * self.logprob(chosen)
            )
        gain = self.logprob(chosen) - self.logprob(chosen, adapting=False).detach()
        if objective == "kto" and not pair:
            return 1.0 - torch.sigmoid(beta * label * gain)
        loss = self.logprob(other) - self.logprob(other, adapting=False).detach()
        if objective == "kto":
            return (1.0 - torch.sigmoid(beta * gain)) + (1.0 - torch.sigmoid(-beta * loss))
        return torch.log1p(torch.exp(-beta * (gain - loss)))

    def gradient(self, objective: str, texts: tuple[Tokens, ...], example: Examples, beta: float) -> Tensor:
        """[D_s + D_p] gradient of one example's loss."""
        value = self.loss(objective, texts, example, beta)
        leaves = (self.shared_leaf, self.personal_leaf)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
        return torch.cat(filled).detach()
