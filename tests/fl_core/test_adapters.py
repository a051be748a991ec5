"""Layouts, initial values, public constants, and equation (1) by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fl_core.adapters import DualAdapter, Layout, Site, public_a
from fl_core.config import AdapterSpec
from fl_core.errors import AdapterError
from fl_core.features import FeatureMap

SITE = Site("1.q_proj", 3, 2)
ONE = torch.ones(1)


def adapter(shared: AdapterSpec, personal: AdapterSpec | None = None, **changed: object) -> DualAdapter:
    options: dict[str, object] = {
        "sites_shared": (SITE,),
        "sites_personal": (SITE,),
        "hidden": 4,
        "head": True,
        "seed": 0,
        "weights": {SITE.name: torch.eye(2, 3)},
        **changed,
    }
    return DualAdapter(shared, personal, **options)  # type: ignore[arg-type]


def names(layout: Layout) -> dict[str, tuple[int, ...]]:
    return dict(layout.shapes)


LORA = AdapterSpec(kind="lora", rank=2, alpha=3.0)
B_ONLY = AdapterSpec(kind="b_only", rank=2, alpha=3.0)
MIXED = AdapterSpec(kind="components", rank=2, alpha=3.0, components=3, component_trunk=True)
HEAD_MIXED = MIXED.model_copy(update={"component_trunk": False})
SUBSPACE = AdapterSpec(kind="subspace", rank=2, alpha=3.0)
COMPONENTS = AdapterSpec(kind="components")


# --- Layouts -------------------------------------------------------------------------------


def test_shared_layouts_hold_exactly_the_trained_numbers() -> None:
    a, b, head = "trunk.1.q_proj.A", "trunk.1.q_proj.B", {"head.common": (4,), "head.bias": (1,)}
    assert names(adapter(LORA).shared_layout) == {a: (2, 3), b: (2, 2), **head}
    assert names(adapter(B_ONLY).shared_layout) == {b: (2, 2), **head}
    parts = {"components.1.q_proj.B": (3, 2, 2), "head.components": (3, 4)}
    assert names(adapter(MIXED).shared_layout) == {b: (2, 2), **head, **parts}
    assert names(adapter(HEAD_MIXED).shared_layout) == {b: (2, 2), **head, "head.components": (3, 4)}
    assert names(adapter(LORA, head=False).shared_layout) == {a: (2, 3), b: (2, 2)}


def test_personal_layouts_hold_exactly_the_trained_numbers() -> None:
    a, b, core, bias = "trunk.1.q_proj.A", "trunk.1.q_proj.B", "trunk.1.q_proj.R", {"head.bias": (1,)}
    assert names(adapter(MIXED, COMPONENTS).personal_layout) == {"weights": (3,), **bias}
    assert names(adapter(LORA, SUBSPACE).personal_layout) == {core: (2, 2), "head.R": (2,), **bias}
    assert names(adapter(LORA, B_ONLY).personal_layout) == {b: (2, 2), "head.vector": (4,), **bias}
    assert names(adapter(LORA, LORA).personal_layout) == {
        a: (2, 3),
        b: (2, 2),
        "head.vector": (4,),
        **bias,
    }
    assert adapter(LORA).personal_layout.size == 0


def test_split_and_join_are_inverse() -> None:
    layout = adapter(MIXED).shared_layout
    flat = np.arange(layout.size, dtype=np.float32)
    parts = layout.split(flat)
    assert parts["trunk.1.q_proj.B"].tolist() == [[0, 1], [2, 3]]
    assert np.array_equal(layout.join(dict(reversed(parts.items()))), flat)
    assert layout.join({k: v.astype(np.float64) for k, v in parts.items()}).dtype == np.float32
    assert Layout(()).join({}).shape == (0,)


def test_a_view_shares_memory() -> None:
    layout = adapter(LORA).shared_layout
    flat = torch.zeros(5, layout.size)
    layout.view(flat, "trunk.1.q_proj.A")[3, 1, 2] = 7.0
    assert flat[3, 5] == 7.0
    assert flat.sum() == 7.0


def test_join_names_what_is_wrong() -> None:
    layout = adapter(LORA).shared_layout
    parts = layout.split(np.zeros(layout.size, dtype=np.float32))
    with pytest.raises(AdapterError, match=r"\['head.bias'\] differ"):
        layout.join({k: v for k, v in parts.items() if k != "head.bias"})
    with pytest.raises(AdapterError, match=r"\['surplus'\] differ"):
        layout.join({**parts, "surplus": np.zeros(1, dtype=np.float32)})
    with pytest.raises(AdapterError, match=r"'head.bias': shape \(2,\), expected \(1,\)"):
        layout.join({**parts, "head.bias": np.zeros(2, dtype=np.float32)})


# --- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shared", "personal", "changed", "words"),
    [
        (LORA, COMPONENTS, {}, "shared.kind='lora' has none"),
        (SUBSPACE, None, {}, "not a shared kind"),
        (LORA.model_copy(update={"rank": 3}), None, {}, "shared.rank=3.*at most 2"),
        (LORA, SUBSPACE.model_copy(update={"rank": 4}), {}, "personal.rank=4.*at most 2"),
        (LORA, SUBSPACE, {"weights": {}}, "no weight"),
        (LORA, SUBSPACE, {"head_basis": torch.ones(1, 4)}, "exceeds the 1 public head"),
        (HEAD_MIXED, COMPONENTS, {"head": False}, "would change nothing.*component-trunk"),
        (LORA, LORA, {"head": False, "sites_personal": ()}, "would change nothing.*personal.targets"),
    ],
)
def test_what_cannot_work_is_refused(
    shared: AdapterSpec, personal: AdapterSpec | None, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(AdapterError, match=words):
        adapter(shared, personal, **changed)


# --- Initial values and public constants ---------------------------------------------------


@pytest.mark.parametrize(
    ("shared", "personal"),
    [
        (shared, personal)
        for shared in (LORA, B_ONLY, MIXED, HEAD_MIXED)
        for personal in (None, LORA, B_ONLY, SUBSPACE, COMPONENTS)
        if personal is not COMPONENTS or shared.kind == "components"
    ],
)
def test_initial_values_add_nothing(shared: AdapterSpec, personal: AdapterSpec | None) -> None:
    dual = adapter(shared, personal)
    s, p = dual.initial_shared()[None], dual.initial_personal()[None]
    for term in (dual.shared_term(SITE, s, ONE), dual.personal_term(SITE, s, p, ONE)):
        assert term is None or not (term.b @ term.a).any()
    assert not dual.head_vector(s, p, torch.ones(1, 2)).any()
    assert not dual.head_bias(s, p, torch.ones(1, 2)).any()


def test_components_start_apart_and_the_prior_leaves_the_shared_model() -> None:
    dual = adapter(MIXED, COMPONENTS)
    s = dual.initial_shared()[None]
    for name in ("head.components", "components.1.q_proj.B"):
        parts = dual.shared_layout.view(s, name)[0].flatten(1)
        assert torch.cdist(parts, parts).add(torch.eye(3)).min() > 1e-3
    moved = s + torch.randn(s.shape, generator=torch.Generator().manual_seed(0))
    p, both = dual.initial_personal()[None], torch.ones(1, 2)
    alone = dual.head_vector(moved, p, torch.tensor([[1.0, 0.0]]))
    assert torch.equal(dual.head_vector(moved, p, both), alone)


def test_public_constants_come_from_the_seed_alone() -> None:
    """Another process, another order of layers, another cohort: the same numbers."""
    first, again, other = adapter(MIXED, LORA), adapter(MIXED, LORA), adapter(MIXED, LORA, seed=1)
    assert torch.equal(first.initial_shared(), again.initial_shared())
    assert torch.equal(first.initial_personal(), again.initial_personal())
    assert not torch.equal(first.initial_shared(), other.initial_shared())
    names_of = ["shared.1.q_proj.A", "personal.1.q_proj.A"]
    assert not torch.equal(first.public(names_of[0]), first.public(names_of[1]))
    golden = public_a(Site("0.x", 2, 2), 1, 0, "A")
    state = torch.get_rng_state()
    assert torch.equal(public_a(Site("0.x", 2, 2), 1, 0, "A"), golden)
    assert torch.equal(torch.get_rng_state(), state)


def test_public_a_has_the_spread_that_peft_draws() -> None:
    """Uniform on +-1/sqrt(in), as ``kaiming_uniform_(a=sqrt(5))`` gives."""
    a = public_a(Site("0.x", 400, 8), 50, 0, "A")
    assert float(a.abs().max()) <= 1 / math.sqrt(400)
    assert float(a.std()) == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)


def test_subspace_bases_are_the_leading_singular_vectors() -> None:
    weight = torch.diag(torch.tensor([1.0, 5.0, 3.0]))[:2]
    dual = adapter(LORA, SUBSPACE, weights={SITE.name: weight})
    u, v = dual.public("personal.1.q_proj.U"), dual.public("personal.1.q_proj.V")
    assert torch.allclose(u.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert torch.allclose(v.abs(), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert torch.allclose(u @ torch.diag(torch.tensor([5.0, 1.0])) @ v, weight, atol=1e-6)
    basis = dual.public("personal.head")
    assert torch.allclose(basis @ basis.T, 4.0 * torch.eye(2), atol=1e-5)


# --- Equations (1) and (2) by hand ---------------------------------------------------------


def test_terms_by_hand() -> None:
    dual = adapter(MIXED, COMPONENTS)
    s = torch.zeros(1, dual.shared_layout.size)
    dual.shared_layout.view(s, "trunk.1.q_proj.B").fill_(1.0)
    dual.shared_layout.view(s, "components.1.q_proj.B")[0, 2] = 2.0
    p = torch.zeros(2, dual.personal_layout.size)
    dual.personal_layout.view(p, "weights")[1, 2] = 10.0
    common = dual.shared_term(SITE, s, torch.tensor([1.0, 0.5]))
    assert common is not None
    assert common.b[:, 0, 0].tolist() == [1.5, 0.75]  # s = 3/2, times w_s
    own = dual.personal_term(SITE, s, p, torch.ones(2))
    assert own is not None
    a_2 = dual.public("components.1.q_proj.A")[4:6]
    assert torch.allclose((own.b @ own.a)[1], 1.5 * 10.0 * torch.full((2, 2), 2.0) @ a_2)
    assert not (own.b @ own.a)[0].any()
    assert dual.shared_term(Site("9.other", 3, 2), s, ONE) is None


def test_head_by_hand() -> None:
    """d = 4: r = (w_s v_0 + w_p (2 v_1 - v_3)) . phi / 2 + w_s b_0 + w_p b_u."""
    dual = adapter(HEAD_MIXED, COMPONENTS)
    s, p = torch.zeros(1, dual.shared_layout.size), torch.zeros(1, dual.personal_layout.size)
    dual.shared_layout.view(s, "head.common")[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    dual.shared_layout.view(s, "head.bias")[0] = 0.25
    dual.shared_layout.view(s, "head.components")[0] = torch.eye(3, 4)
    dual.personal_layout.view(p, "weights")[0] = torch.tensor([2.0, 0.0, -1.0])
    dual.personal_layout.view(p, "head.bias")[0] = 1.0
    fusion = torch.tensor([[3.0, 0.5]])
    assert dual.head_vector(s, p, fusion)[0].tolist() == [2.0, 0.0, -0.25, 0.0]
    assert dual.head_bias(s, p, fusion).tolist() == [1.25]


def test_whether_users_need_passes_of_their_own() -> None:
    assert adapter(MIXED, COMPONENTS).personal_in_trunk()
    assert not adapter(HEAD_MIXED, COMPONENTS).personal_in_trunk()
    assert adapter(LORA, SUBSPACE).personal_in_trunk()
    assert not adapter(LORA, SUBSPACE, sites_personal=()).personal_in_trunk()
    assert not adapter(LORA).personal_in_trunk()


def test_the_heads_width_is_that_of_the_features() -> None:
    dual = adapter(LORA, LORA, features=FeatureMap.plain(4, "last-mean"))
    assert names(dual.shared_layout)["head.common"] == names(dual.personal_layout)["head.vector"] == (8,)
