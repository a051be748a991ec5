"""Texts by their use: no prompt of the floor trains, hidden pairs are seen by nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_core.base_model import load_base
from fl_core.public_texts import PublicTexts, texts_of
from fl_core.records import NO_TEXT, Split, ValuesPair
from tests.tiny_runs import TEXTS, tiny_config, tiny_population


def _texts(model: Path, **changes: object) -> PublicTexts:
    config = tiny_config(model, **changes)
    values = tuple(
        ValuesPair(f"w{3 + i // 2}", f"w{i % 9 + 4} w5", "w6 w7 w8", public=i < 18) for i in range(24)
    )
    population = replace(tiny_population(), values=values)
    return PublicTexts(config, population, load_base(config.model, config.dtype))


def test_values_pairs_are_split_by_prompt(tiny_model_folder: Path) -> None:
    texts = _texts(tiny_model_folder)
    kinds = [texts.values, texts.floor, texts.hidden_values]
    assert [len(kind) for kind in kinds] == [12, 6, 6]
    prompts = [{(int(chosen) - TEXTS) // 2 // 2 for chosen in kind.chosen} for kind in kinds]
    assert not prompts[0] & prompts[1] and not (prompts[0] | prompts[1]) & prompts[2]
    assert prompts[1] == {1, 4, 7}
    for kind in kinds:
        assert (kind.rejected == kind.chosen + 1).all()
    assert len(texts.tokens) == TEXTS + 48


def test_rated_are_the_texts_of_training_records_and_of_nobody_in_particular(tiny_model_folder: Path) -> None:
    records = tiny_population().records.of_split(Split.TRAIN)
    named = set(records.chosen.tolist()) | set(records.rejected[records.rejected != NO_TEXT].tolist())
    texts = _texts(tiny_model_folder)
    assert set(texts.rated.tolist()) == named
    assert max(named) < TEXTS - 1  # the last prompt is in nobody's training records


def test_public_pairs_are_spread_evenly(tiny_model_folder: Path) -> None:
    texts = _texts(tiny_model_folder)
    assert np.array_equal(texts.public_pairs(3).chosen, texts.values.chosen[[0, 6, 11]])
    assert len(texts.public_pairs(0)) == 0
    assert len(texts.public_pairs(99)) == 12
    assert np.array_equal(texts_of(texts.values), np.unique([texts.values.chosen, texts.values.rejected]))


def test_a_prompt_is_cut_from_its_start_and_may_be_left_out(tiny_model_folder: Path) -> None:
    cut = _texts(tiny_model_folder, train__prompt_tokens=4)
    none = _texts(tiny_model_folder, train__prompt_tokens=0)
    whole = _texts(tiny_model_folder, train__prompt_tokens=40)
    for few, all_of, without in zip(cut.tokens, whole.tokens, none.tokens, strict=True):
        start = len(all_of.ids) - len(few.ids)
        assert few.ids == all_of.ids[start:]
        assert sum(few.response) == sum(all_of.response) == sum(without.response)
        assert few.response.index(True) <= 4
    assert sum(len(t.ids) for t in none.tokens) < sum(len(t.ids) for t in whole.tokens)
