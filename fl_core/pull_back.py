"""The chain rule from what layers see, effective (A, B) and scores, to the trained numbers.

Layers hand out each example's gradients of the *effective* terms of equations (1) and (2) of
``fl_core.adapters``; here they become gradients of the flat shared and personal vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from fl_core.adapters import DualAdapter, Site

if TYPE_CHECKING:  # the engine imports this module
    from fl_core.engine import CohortState, Part


class PullBack:
    """The chain rule from a site's effective (A, B) to the numbers that are trained.

    ``shared`` [E, D_s or 0] and ``personal`` [E, D_p or 0] are written in place; ``user`` [E].
    """

    def __init__(
        self,
        adapter: DualAdapter,
        state: CohortState,
        user: Tensor,
        shared: Tensor,
        personal: Tensor,
        part: Part,
    ) -> None:
        self.adapter, self.state, self.user = adapter, state, user
        self.shared, self.personal, self.part = shared, personal, part
        self.any_shared = bool((state.fusion[:, 0] != 0).any())
        self.weight = state.fusion[user] if len(state.fusion) > 1 else state.fusion.expand(len(user), -1)

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
        if site in self.adapter.sites_shared and self.any_shared:
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
            basis = self.adapter.public(f"personal.{site.name}.V")
            self._write("personal", f"trunk.{site.name}.R", grad_a @ basis.T)
        else:
            assert grad_b is not None
            scale = (spec.scale * self.weight[:, 1])[:, None, None]
            self._write("personal", f"trunk.{site.name}.B", grad_b * scale)
            if grad_a is not None:
                self._write("personal", f"trunk.{site.name}.A", grad_a)

    def _component_site(self, site: Site, grad_b: Tensor) -> None:
        shared = self.adapter.shared
        parts = grad_b.view(*grad_b.shape[:2], shared.components, shared.rank).transpose(1, 2)
        scale = shared.scale * self.weight[:, 1]
        if self.part != "personal":
            mixing = self.adapter.personal_layout.view(self.state.personal, "weights")[self.user]
            scaled = (mixing * scale[:, None])[:, :, None, None]
            self._write("shared", f"components.{site.name}.B", parts * scaled)
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
            if spec is not None and spec.kind == "components":
                mixing = self.adapter.personal_layout.view(personal, "weights")[self.user]
                spread = (mixing * self.weight[:, 1:])[:, :, None] * phi[:, None]
                self._write("shared", "head.components", spread)
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
