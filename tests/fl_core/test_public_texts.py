"""Texts by their use: no prompt of the floor trains, hidden pairs are seen by nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_core.base_model import load_base
from fl_core.public_texts import PublicTexts, texts_of
from fl_core.records import Split, ValuesPair
from tests.tiny_runs import ANSWERS, TEXTS, tiny_config, tiny_population


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


def test_what_may_be_rated_depends_on_nobody_s_training_records(tiny_model_folder: Path) -> None:
    texts = _texts(tiny_model_folder)
    assert texts.rated.tolist() == list(range(TEXTS - ANSWERS))  # the last prompt is kept for UNSEEN
    config, population = tiny_config(tiny_model_folder), tiny_population()
    without = replace(population, records=population.records.of_split(Split.UNSEEN))
    again = PublicTexts(config, without, load_base(config.model, config.dtype))
    assert np.array_equal(again.rated, texts.rated)


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
