"""Dual adapters: which numbers a shared and a personal adapter hold, and what they add.

On every adapted linear layer (a *site*)

    y = W x + w_s s_s B_s A_s x + w_p s_p B_p A_p x,        s = alpha / r                (1)

(LoRA, Hu et al. 2021, section 4.1; the dual form is FDLoRA's, Qi et al. 2024).  A reward
model adds a head on features phi of width d (``fl_core.features``), scaled by 1/sqrt(d):

    r_u = (w_s v_0 + w_p v_u) . phi / sqrt(d) + bias                                      (2)

Shared kinds: ``lora`` trains A and B; ``b_only`` trains B over a fixed public A (FFA-LoRA,
Sun et al. 2024); ``components`` is a ``b_only`` common part and K further parts B_k over
their own fixed public A_k, and in the head v_0 and v_1..v_K.
Personal kinds: ``components`` holds the mixing weights w_u in R^K alone: B_p = [w_uk B_k],
v_u = sum_k w_uk v_k (reward factorisation, Shenfeld et al. 2025); ``subspace`` an r-by-r core
R between public bases, B_p = U_r, A_p = R V_r (LoRA-XS, Balazy et al. 2024); ``b_only`` and
``lora`` as above.

All numbers of one adapter live in one flat float32 vector; ``Layout`` names its parts.
Everything here is a pure function of such vectors.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core.config import AdapterSpec
from fl_core.errors import AdapterError
from fl_core.features import FeatureMap

COMPONENT_SPREAD = 0.3
"""Standard deviation of the initial head components (they start apart, at random)."""


@dataclass(frozen=True)
class Site:
    """One adapted linear layer: its name (``"4.q_proj"``) and its widths."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parts of one flat vector, in order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each part lies."""
        found, start = {}, 0
        for name, shape in self.shapes:
            found[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        return found

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part ``name`` of [..., size] as [..., *shape]; shares memory."""
        part = flat[..., self.slices[name]]
        return part.view(*part.shape[:-1], *dict(self.shapes)[name])

    def holds(self, name: str) -> bool:
        """Whether a part of that name exists."""
        return any(name == known for known, _ in self.shapes)

    def split(self, flat: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """A [size] vector as named arrays, for files and messages."""
        return {name: flat[self.slices[name]].reshape(shape) for name, shape in self.shapes}

    def join(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The inverse of ``split``.

        Raises ``AdapterError`` where names or shapes are not exactly this layout's.
        """
        wanted = dict(self.shapes)
        if set(arrays) != set(wanted):
            wrong = sorted(set(arrays) ^ set(wanted))
            raise AdapterError(f"adapter arrays: expected {sorted(wanted)}, but {wrong} differ")
        for name, array in arrays.items():
            if array.shape != wanted[name]:
                raise AdapterError(f"adapter array {name!r}: shape {array.shape}, expected {wanted[name]}")
        parts = [np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name, _ in self.shapes]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class Term:
    """One low-rank term of one site for a cohort: B (scaled) and A.

    ``a`` is [U or 1, R, in], ``b`` [U or 1, out, R]; 1 means that all users have the same.
    """

    a: Tensor
    b: Tensor


def public_generator(seed: int, name: str) -> torch.Generator:
    """A generator that everybody who knows the public seed can rebuild for a part."""
    return torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63)


def public_a(site: Site, rank: int, seed: int, name: str) -> Tensor:
    """A [rank, in] drawn as PEFT draws it (Kaiming uniform with a = sqrt 5)."""
    bound = 1.0 / math.sqrt(site.in_features)
    draw = torch.rand(rank, site.in_features, generator=public_generator(seed, f"{site.name}.{name}"))
    return (2.0 * draw - 1.0) * bound


class DualAdapter:
    """The structure of a shared and a personal adapter on given sites.

    ``sites_shared`` and ``sites_personal`` are the layers each targets.  ``weights`` maps a
    site's name to its W [out, in], needed for ``subspace`` bases alone.  ``hidden`` is the
    model's width; ``head`` says whether a reward head exists, which reads ``features`` (the
    last token's hidden state where none are given).  ``personal`` may be ``None``.
    ``head_basis`` [r, d] is the public basis of a ``subspace`` head; the leading right singular
    vectors of public texts' features, or, without it, random directions.
    """

    def __init__(
        self,
        shared: AdapterSpec,
        personal: AdapterSpec | None,
        sites_shared: tuple[Site, ...],
        sites_personal: tuple[Site, ...],
        hidden: int,
        head: bool,
        seed: int,
        weights: Mapping[str, Tensor] | None = None,
        head_basis: Tensor | None = None,
        features: FeatureMap | None = None,
    ) -> None:
        if personal is not None and personal.kind == "components" and shared.kind != "components":
            raise AdapterError(
                f"personal.kind='components' mixes the shared adapter's components, but "
                f"shared.kind={shared.kind!r} has none; set shared.kind='components'"
            )
        if shared.kind == "subspace":
            raise AdapterError("shared.kind='subspace': not a shared kind; use lora, b_only or components")
        _check_ranks(shared, sites_shared, "shared")
        if personal is not None and personal.kind != "components":
            _check_ranks(personal, sites_personal, "personal")
        self.shared, self.personal = shared, personal
        self.sites_shared, self.sites_personal = sites_shared, sites_personal
        self.features = features or FeatureMap.plain(hidden)
        self.hidden, self.head, self.seed = self.features.width, head, seed
        mixes = shared.kind == "components" and shared.component_trunk
        self.component_sites = sites_shared if mixes else ()
        self._constants = self._public_constants(weights or {}, head_basis)
        self.shared_layout = Layout(tuple(self._shared_shapes()))
        self.personal_layout = Layout(tuple(self._personal_shapes()))
        if personal is not None and not (head or self.personal_in_trunk()):
            raise AdapterError(
                f"personal.kind={personal.kind!r} reaches no layer and there is no reward head, so it would "
                "change nothing; set personal.targets (for components: shared.targets and "
                "shared.component-trunk=true), or train.objective='reward'"
            )

    # Layouts -----------------------------------------------------------------------------

    def _shared_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        spec = self.shared
        shapes: list[tuple[str, tuple[int, ...]]] = []
        for site in self.sites_shared:
            if spec.kind == "lora":
                shapes.append((f"trunk.{site.name}.A", (spec.rank, site.in_features)))
            shapes.append((f"trunk.{site.name}.B", (site.out_features, spec.rank)))
        for site in self.component_sites:
            shapes.append((f"components.{site.name}.B", (spec.components, site.out_features, spec.rank)))
        if self.head:
            shapes += [("head.common", (self.hidden,)), ("head.bias", (1,))]
            if spec.kind == "components":
                shapes.append(("head.components", (spec.components, self.hidden)))
        return shapes

    def _personal_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        spec = self.personal
        shapes: list[tuple[str, tuple[int, ...]]] = []
        if spec is None:
            return []
        if spec.kind == "components":
            shapes.append(("weights", (self.shared.components,)))
        for site in self.sites_personal if spec.kind != "components" else ():
            if spec.kind == "lora":
                shapes.append((f"trunk.{site.name}.A", (spec.rank, site.in_features)))
            if spec.kind == "subspace":
                shapes.append((f"trunk.{site.name}.R", (spec.rank, spec.rank)))
            else:
                shapes.append((f"trunk.{site.name}.B", (site.out_features, spec.rank)))
        if self.head:
            if spec.kind == "subspace":
                shapes.append(("head.R", (spec.rank,)))
            elif spec.kind != "components":
                shapes.append(("head.vector", (self.hidden,)))
            shapes.append(("head.bias", (1,)))
        return shapes

    def _public_constants(
        self, weights: Mapping[str, Tensor], head_basis: Tensor | None
    ) -> dict[str, Tensor]:
        constants: dict[str, Tensor] = {}
        rank, count = self.shared.rank, self.shared.components
        for site in self.sites_shared:
            constants[f"shared.{site.name}.A"] = public_a(site, rank, self.seed, "A")
        for site in self.component_sites:
            parts = [public_a(site, rank, self.seed, f"A{k}") for k in range(count)]
            constants[f"components.{site.name}.A"] = torch.cat(parts)
        if self.personal is not None and self.personal.kind in ("b_only", "lora"):
            for site in self.sites_personal:
                constants[f"personal.{site.name}.A"] = public_a(site, self.personal.rank, self.seed, "P")
        if self.personal is not None and self.personal.kind == "subspace":
            constants.update(self._subspace_bases(self.personal.rank, weights, head_basis))
        return constants

    def _subspace_bases(
        self, rank: int, weights: Mapping[str, Tensor], head_basis: Tensor | None
    ) -> dict[str, Tensor]:
        bases: dict[str, Tensor] = {}
        for site in self.sites_personal:
            if site.name not in weights:
                raise AdapterError(f"subspace adapter: layer {site.name!r} has no weight to take bases from")
            weight = weights[site.name].float().cpu()  # other devices' routines give other signs
            u, _, vh = torch.linalg.svd(weight, full_matrices=False)
            bases[f"personal.{site.name}.U"], bases[f"personal.{site.name}.V"] = u[:, :rank], vh[:rank]
        if not self.head:
            return bases
        if head_basis is None:
            draw = torch.randn(self.hidden, rank, generator=public_generator(self.seed, "head.basis"))
            head_basis = torch.linalg.qr(draw).Q.T * math.sqrt(self.hidden)
        if head_basis.shape[0] < rank:
            raise AdapterError(
                f"personal.rank={rank}: exceeds the {head_basis.shape[0]} public head directions; lower it"
            )
        bases["personal.head"] = head_basis[:rank]
        return bases

    def public(self, name: str) -> Tensor:
        """A public constant, e.g. ``"shared.4.q_proj.A"``."""
        return self._constants[name]

    def on(self, device: torch.device) -> DualAdapter:
        """The same structure with its public constants and its feature map on ``device``."""
        twin = copy.copy(self)
        twin.features = self.features.on(device)
        twin._constants = {name: constant.to(device) for name, constant in self._constants.items()}
        return twin

    # Initial values ----------------------------------------------------------------------

    def initial_shared(self) -> Tensor:
        """[D_s] from the public seed: adds nothing to the model; components start apart."""
        flat = torch.zeros(self.shared_layout.size)
        for name, shape in self.shared_layout.shapes:
            part = self.shared_layout.view(flat, name)
            if name.startswith("trunk.") and name.endswith(".A"):
                part.copy_(self.public(f"shared.{name[len('trunk.') : -2]}.A"))
            elif name.startswith("components.") or name == "head.components":
                narrower = 1.0 if name.startswith("head") else math.sqrt(self.shared.rank) * 16
                spread = COMPONENT_SPREAD / narrower
                part.copy_(torch.randn(shape, generator=public_generator(self.seed, name)) * spread)
        return flat

    def initial_personal(self) -> Tensor:
        """[D_p]: the prior, under which the model is exactly the shared one."""
        flat = torch.zeros(self.personal_layout.size)
        for name, _ in self.personal_layout.shapes:
            if name.endswith(".A"):
                public = self.public(f"personal.{name[len('trunk.') : -2]}.A")
                self.personal_layout.view(flat, name).copy_(public)
        return flat

    # Equation (1) ------------------------------------------------------------------------

    def shared_term(self, site: Site, shared: Tensor, weight: Tensor) -> Term | None:
        """The shared term of ``site``: shared [1 or U, D_s], weight w_s [1 or U]."""
        if site not in self.sites_shared:
            return None
        b = self.shared_layout.view(shared, f"trunk.{site.name}.B")
        if self.shared.kind == "lora":
            a = self.shared_layout.view(shared, f"trunk.{site.name}.A")
        else:
            a = self.public(f"shared.{site.name}.A")[None]
        return Term(a, b * (self.shared.scale * weight)[:, None, None])

    def personal_term(self, site: Site, shared: Tensor, personal: Tensor, weight: Tensor) -> Term | None:
        """The personal term of ``site``: personal [U, D_p], weight w_p [1 or U]."""
        spec = self.personal
        if spec is None:
            return None
        if spec.kind == "components":
            return self._component_term(site, shared, personal, weight)
        if site not in self.sites_personal:
            return None
        scale = (spec.scale * weight)[:, None, None]
        if spec.kind == "subspace":
            core = self.personal_layout.view(personal, f"trunk.{site.name}.R")
            a = core @ self.public(f"personal.{site.name}.V")
            return Term(a, self.public(f"personal.{site.name}.U")[None] * scale)
        b = self.personal_layout.view(personal, f"trunk.{site.name}.B")
        if spec.kind == "lora":
            return Term(self.personal_layout.view(personal, f"trunk.{site.name}.A"), b * scale)
        return Term(self.public(f"personal.{site.name}.A")[None], b * scale)

    def _component_term(self, site: Site, shared: Tensor, personal: Tensor, weight: Tensor) -> Term | None:
        if site not in self.component_sites:
            return None
        parts = self.shared_layout.view(shared, f"components.{site.name}.B")
        mixing = self.personal_layout.view(personal, "weights") * (self.shared.scale * weight)[:, None]
        b = (mixing[:, :, None, None] * parts).permute(0, 2, 1, 3).flatten(2)
        return Term(self.public(f"components.{site.name}.A")[None], b)

    # Equation (2) ------------------------------------------------------------------------

    def head_vector(self, shared: Tensor, personal: Tensor, fusion: Tensor) -> Tensor:
        """[U, d]: the user's head over phi, 1/sqrt(d) included; fusion [U, 2] is (w_s, w_p)."""
        vector = fusion[:, :1] * self.shared_layout.view(shared, "head.common")
        own = self.personal_head(shared, personal)
        if own is not None:
            vector = vector + fusion[:, 1:] * own
        return vector / math.sqrt(self.hidden)

    def personal_head(self, shared: Tensor, personal: Tensor) -> Tensor | None:
        """[U, d]: v_u, or ``None`` without a personal adapter."""
        if self.personal is None:
            return None
        if self.personal.kind == "components":
            parts = self.shared_layout.view(shared, "head.components")
            return (self.personal_layout.view(personal, "weights")[:, :, None] * parts).sum(1)
        if self.personal.kind == "subspace":
            return self.personal_layout.view(personal, "head.R") @ self.public("personal.head")
        return self.personal_layout.view(personal, "head.vector")

    def head_bias(self, shared: Tensor, personal: Tensor, fusion: Tensor) -> Tensor:
        """[U]: the bias, of use where single texts are judged (votes)."""
        bias = fusion[:, 0] * self.shared_layout.view(shared, "head.bias")[:, 0]
        if self.personal is not None:
            bias = bias + fusion[:, 1] * self.personal_layout.view(personal, "head.bias")[:, 0]
        return bias

    def personal_in_trunk(self) -> bool:
        """Whether users differ below the head, so that each needs a forward pass of its own."""
        if self.personal is None:
            return False
        return bool(self.component_sites) if self.personal.kind == "components" else bool(self.sites_personal)


def _check_ranks(spec: AdapterSpec, sites: tuple[Site, ...], which: str) -> None:
    """Raises ``AdapterError`` where a rank exceeds a layer's width: B A could not use it."""
    for site in sites:
        width = min(site.in_features, site.out_features)
        if spec.rank > width:
            raise AdapterError(
                f"{which}.rank={spec.rank}: layer {site.name!r} is {site.in_features} by "
                f"{site.out_features}; use a rank of at most {width}"
            )
