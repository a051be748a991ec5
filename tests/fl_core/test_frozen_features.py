"""Features of all texts: computed once, the same to the bit for whoever reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_core.frozen_features import frozen_features
from fl_core.prefix_store import PrefixBudget, PrefixStore
from fl_core.shared_text import features_above
from fl_core.trunk import Trunk
from tests.fl_core.tiny_models import tiny_base, tiny_texts

FIT = np.arange(8), np.arange(8, 12)


def store_of(family: str = "llama", seed: int = 0, texts: int = 20) -> PrefixStore:
    return PrefixStore(Trunk(tiny_base(family, seed=seed), []), tiny_texts(texts), 40, PrefixBudget(0))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_file_holds_what_a_pass_gives(family: str, tmp_path: Path) -> None:
    store = store_of(family)
    found = frozen_features(tmp_path / "f.safetensors", store, "layers", *FIT)
    assert found.phi.shape == (20, 5 * 24)
    for index in store.batches(np.arange(20)):
        again = features_above(store.trunk, store.batch(index), found.features)
        assert torch.allclose(again, found.phi[torch.from_numpy(index)], atol=1e-4)


def test_who_comes_later_reads_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    first = frozen_features(path, store_of(), "layers", *FIT)
    written = path.stat().st_mtime_ns
    second = frozen_features(path, store_of(), "layers", *FIT)
    assert path.stat().st_mtime_ns == written
    assert torch.equal(first.phi, second.phi)
    assert first.features.whiten is not None and second.features.whiten is not None
    assert torch.equal(first.features.whiten, second.features.whiten)
    assert first.features.gate is not None and second.features.gate is not None
    assert torch.equal(first.features.gate, second.features.gate)


@pytest.mark.parametrize("change", ["model", "texts", "fit", "pooling", "measured", "broken"])
def test_a_file_of_something_else_is_replaced(change: str, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    first = frozen_features(path, store_of(), "layers", *FIT)
    phi = first.phi.clone()
    if change == "broken":
        path.write_bytes(path.read_bytes()[:100])
    other = {
        "model": (store_of(seed=1), "layers", *FIT),
        "texts": (store_of(texts=21), "layers", *FIT),
        "fit": (store_of(), "layers", FIT[0][:6], FIT[1]),
        "pooling": (store_of(), "last-mean", *FIT),
        "measured": (store_of(), "layers", *FIT, np.arange(3)),
        "broken": (store_of(), "layers", *FIT),
    }[change]
    second = frozen_features(path, *other)  # type: ignore[arg-type]
    same = phi.shape == second.phi.shape and torch.equal(phi, second.phi)
    assert same == (change in ("broken", "measured"))
    assert int(second.logprob.isfinite().sum()) == (3 if change == "measured" else 0)


def test_narrowed_features_are_those_of_the_narrowed_map(tmp_path: Path) -> None:
    store = store_of()
    found = frozen_features(tmp_path / "f.safetensors", store, "layers", *FIT)
    narrow = found.narrowed(7)
    assert narrow.phi.shape == (20, 7)
    for index in store.batches(np.arange(20)):
        again = features_above(store.trunk, store.batch(index), narrow.features)
        assert torch.allclose(again, narrow.phi[torch.from_numpy(index)], atol=1e-4)
    assert found.narrowed(1000) is found
