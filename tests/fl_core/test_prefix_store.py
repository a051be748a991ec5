"""Kept activations change no result, stay within their budget, and leave no file behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_core.cohort import StepPlan, train_cohort
from fl_core.config import PrefixConfig
from fl_core.engine import CohortEngine
from fl_core.noise import SimulationNoise
from fl_core.prefix_store import PrefixBudget, PrefixStore, PrefixStores
from fl_core.trunk import Trunk
from tests.fl_core.tiny_models import FAMILIES, Setup, distance, make_setup, mixed_examples, tiny_base

NOTHING, MEMORY = PrefixBudget(0), PrefixBudget(2**20)
USERS = [0, 0, 0, 1, 2, 2]


def bytes_of(setup: Setup, text: int) -> tuple[int, int]:
    """(hidden states, means) of a text in float32."""
    width = setup.trunk.hidden * 4
    return len(setup.texts[text].ids) * width, (setup.trunk.first + 1) * width


def engine_with(setup: Setup, budget: PrefixBudget) -> CohortEngine:
    store = PrefixStore(setup.trunk, setup.texts, 30, budget)
    return CohortEngine(setup.trunk, setup.adapter, setup.texts, setup.engine.train, 40, store)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_kept_activations_change_no_result(family: str, objective: str, tmp_path: Path) -> None:
    """Three private steps with nothing kept, all in memory, all in the file, and some of each."""
    setup = make_setup(family, "lora", "lora", objective)  # type: ignore[arg-type]
    examples = mixed_examples(USERS, len(setup.texts), form="pairs")
    some = 2 * sum(bytes_of(setup, 0))
    budgets = [
        NOTHING,
        MEMORY,
        PrefixBudget(0, 2**20, tmp_path),
        PrefixBudget(some, 0),
        PrefixBudget(some, some, tmp_path),
    ]
    plan = StepPlan(3, "sgd", 0.1, 0.5, 0.3, denominator=4.0)
    found = []
    for budget in budgets:
        engine = engine_with(setup, budget)
        noise = SimulationNoise(0)
        found.append(train_cohort(engine, setup.state, examples, [0, 1, 2], "both", plan, noise, 0))
    for other in found[1:]:
        assert distance(other.shared, found[0].shared) < 1e-6
        assert distance(other.personal, found[0].personal) < 1e-6
    assert distance(found[0].personal, setup.state.personal) > 1e-3


def test_each_text_is_computed_once_and_repeats_cost_nothing() -> None:
    setup = make_setup(texts=6)
    store = PrefixStore(setup.trunk, setup.texts, 25, MEMORY)
    index = np.array([3, 1, 3, 3, 0])
    first, again = store.batch(index), store.batch(index)
    assert store.computed == 3
    assert torch.equal(first.hidden, again.hidden) and torch.equal(first.means, again.means)
    assert torch.equal(first.ids[0], first.ids[2]) and torch.equal(first.hidden[0], first.hidden[3])
    store.batch(np.array([5, 3]))
    assert store.computed == 4


def test_the_budget_holds_in_memory_and_on_disk(tmp_path: Path) -> None:
    setup = make_setup(texts=7)
    sizes = [bytes_of(setup, text) for text in range(7)]
    memory, disk = sum(map(sum, sizes[:2])), max(map(sum, sizes[2:])) * 2
    store = PrefixStore(setup.trunk, setup.texts, 4096, PrefixBudget(memory, disk, tmp_path))
    for text in range(7):
        store.batch(np.array([text]))
    kept = len(store._kept)
    assert 4 <= kept < 7 and store._file_used > 0  # the memory is full, and the file is used
    before = store.computed
    store.batch(np.arange(7))
    assert store.computed - before == 7 - kept
    assert store._memory_left >= 0 and store._file_used <= disk


def test_the_file_has_no_name(tmp_path: Path) -> None:
    setup = make_setup(texts=4)
    store = PrefixStore(setup.trunk, setup.texts, 4096, PrefixBudget(0, 2**20, tmp_path / "new"))
    first, again = store.batch(np.arange(4)), store.batch(np.arange(4))
    assert len(store._kept) == 4 and store.computed == 4
    assert torch.equal(first.means, again.means)
    for row, length in enumerate(first.lengths):
        assert torch.equal(first.hidden[row, :length], again.hidden[row, :length])
    assert list((tmp_path / "new").iterdir()) == []


def test_bfloat16_halves_the_bytes_within_its_precision() -> None:
    setup = make_setup(texts=5)
    exact = PrefixStore(setup.trunk, setup.texts, 4096, MEMORY)
    half = PrefixStore(setup.trunk, setup.texts, 4096, replace(MEMORY, dtype=torch.bfloat16))
    first = half.batch(np.arange(5)).hidden
    wanted, got = exact.batch(np.arange(5)).hidden, half.batch(np.arange(5)).hidden
    assert got.dtype == wanted.dtype
    real = torch.arange(wanted.shape[1])[None, :] < exact.batch(np.arange(5)).lengths[:, None]
    assert torch.equal(first[real], got[real])
    error = float((got - wanted)[real].norm() / wanted[real].norm())
    assert 0 < error < 2**-8
    hidden = sum(bytes_of(setup, text)[0] for text in range(5))
    assert half._memory_left - exact._memory_left == hidden // 2


def test_trunks_cut_at_the_same_layer_share_a_store() -> None:
    base = tiny_base("llama")
    stores = PrefixStores(make_setup().texts, MEMORY)
    one, two = Trunk(base, [(("q_proj",), "top:1")]), Trunk(base, [(("v_proj",), "top:1")])
    assert stores.of(one) is stores.of(two)
    assert stores.of(Trunk(base, [(("v_proj",), "top:2")])) is not stores.of(one)


def test_the_budget_of_a_configuration() -> None:
    asked = PrefixConfig(memory_mb=3, disk_mb=5, bfloat16=True)
    assert PrefixBudget.configured(asked) == PrefixBudget(3 * 2**20, 5 * 2**20, None, torch.bfloat16)
    assert PrefixBudget.configured(PrefixConfig()) == PrefixBudget()
