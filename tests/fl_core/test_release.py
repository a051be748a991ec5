"""What is released for a noised adapter: moved by public texts, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_core.base_model import load_base
from fl_core.config import RunConfig
from fl_core.engine import Examples
from fl_core.frozen_features import FEATURES_FILE
from fl_core.public_texts import PublicTexts
from fl_core.records import Population, Split, ValuesPair
from fl_core.release import released_shared
from fl_core.shared import Arrays, initial_shared
from tests.fl_core.tiny_models import VOCABULARY
from tests.tiny_runs import tiny_config, tiny_population

PAIRS, PUBLIC = 120, 90


def valued_population() -> Population:
    """Values pairs whose better answers use the first half of the vocabulary."""
    generator = np.random.default_rng(3)
    half = VOCABULARY // 2

    def answer(low: int, high: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(low, high, 6))

    values = tuple(
        ValuesPair(f"w{2 + i % 20} w{3 + i // 20}", answer(2, half), answer(half, VOCABULARY), i < PUBLIC)
        for i in range(PAIRS)
    )
    return replace(tiny_population(), values=values)


def noised(config: RunConfig, arm: str) -> Arrays:
    """An adapter as noise on every upload might leave it: far from ordering the values."""
    generator = np.random.default_rng(1)
    arrays = initial_shared(config, arm)
    return {name: generator.normal(size=value.shape).astype(np.float32) for name, value in arrays.items()}


Release = Callable[..., tuple[Arrays, Arrays]]


@pytest.fixture
def release(tiny_model_folder: Path, tmp_path: Path) -> Release:
    """(trained, released) adapters of an arm, for a population and changed settings."""

    def run(population: Population, arm: str = "dual_dp", **changes: Any) -> tuple[Arrays, Arrays]:
        config = tiny_config(tiny_model_folder, **changes)
        folder = tmp_path / f"population-{len(list(tmp_path.iterdir()))}"
        population.save(folder)
        trained = noised(config, arm)
        return trained, released_shared(config, arm, trained, folder, tmp_path / "out")

    return run


def share(config: RunConfig, population: Population, out: Path, arrays: Arrays, hidden: bool) -> float:
    """The share of floor pairs, or of hidden ones, that a shared head orders rightly."""
    texts = PublicTexts(config, population, load_base(config.model, config.dtype))
    phi = texts.features(out / FEATURES_FILE).narrowed(arrays["head.common"].size).phi
    pairs: Examples = texts.hidden_values if hidden else texts.floor
    scores = phi @ torch.from_numpy(arrays["head.common"]).reshape(-1)
    return float((scores[pairs.chosen] > scores[pairs.rejected]).float().mean())


@pytest.mark.parametrize("arm", ["shared_dp", "dual_dp"])
def test_a_noised_head_is_released_with_the_values_in_it(
    release: Release, tiny_model_folder: Path, tmp_path: Path, arm: str
) -> None:
    population, config = valued_population(), tiny_config(tiny_model_folder)
    trained, released = release(population, arm)
    assert {name for name in trained if not np.array_equal(trained[name], released[name])} == {"head.common"}
    assert {name: value.shape for name, value in released.items()} == {k: v.shape for k, v in trained.items()}
    assert released["head.common"].dtype == np.float32
    before, after = (
        [share(config, population, tmp_path / "out", arrays, hidden) for hidden in (False, True)]
        for arrays in (trained, released)
    )
    assert after[0] > before[0] + 0.15
    assert after[1] > before[1] + 0.1  # and it carries over to pairs that neither pulled nor judged


def test_the_records_and_the_hidden_pairs_decide_nothing(release: Release) -> None:
    """Post-processing may look at what is public alone: that is why it costs no epsilon."""
    population = valued_population()
    records = population.records
    turned = replace(records, label=-records.label, split=records.split)
    pairs = records.is_pair() & (records.split == Split.TRAIN)
    chosen, rejected = records.chosen.copy(), records.rejected.copy()
    chosen[pairs], rejected[pairs] = records.rejected[pairs], records.chosen[pairs]
    turned = replace(turned, chosen=chosen, rejected=rejected)
    hidden = tuple(
        pair if pair.public else replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        for pair in population.values
    )
    _, one = release(population)
    _, two = release(replace(population, records=turned))
    _, three = release(replace(population, values=hidden))
    neighbours = records.take(~((records.user == 0) & (records.split == Split.TRAIN)))
    _, four = release(replace(population, records=neighbours))
    assert np.array_equal(one["head.common"], four["head.common"])
    assert np.array_equal(one["head.common"], two["head.common"])
    np.testing.assert_allclose(one["head.common"], three["head.common"], atol=1e-6)


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("dual", {}),
        ("dual_dp", {"privacy__scope": "personal", "arms": "shared,dual,dual_dp"}),
        ("dual_dp", {"privacy__trunk": True}),
    ],
    ids=["no noise", "personal side", "layers of the trunk"],
)
def test_other_adapters_are_released_as_they_are(release: Release, arm: str, changes: dict[str, Any]) -> None:
    trained, released = release(valued_population(), arm, **changes)
    assert released is trained


def test_without_values_pairs_the_head_stays(release: Release) -> None:
    trained, released = release(replace(valued_population(), values=()))
    assert np.array_equal(trained["head.common"], released["head.common"])
