"""Candidates: reading, measuring and choosing among answers that models gave."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import Split
from simulation.candidates import (
    ATTRIBUTES,
    CandidatesConfig,
    build_candidates,
    candidates_truth,
    measure,
    read_candidates,
    standardised,
)
from simulation.grammar import world_texts

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_eval" / "responses.jsonl.gz"
CONFIG = CandidatesConfig(users=60, seed=2)


def value(text: str, name: str) -> float:
    return measure(text)[ATTRIBUTES.index(name)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The grammar's answers in the file format, one over-long answer to each prompt."""
    lines = []
    for prompt in world_texts(9, prompts=40):
        responses = {f"model-{i}": answer.text for i, answer in enumerate(prompt.answers)}
        lines.append(json.dumps({"prompt": prompt.prompt, "responses": responses | {"long": "word " * 200}}))
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("length", "one two three four", "one two"),
        ("formality", "Consequently, examination is required.", "yeah it's just stuff, don't worry"),
        ("depth", "Precipitation of 12 micrograms", "Rain is wet"),
        ("warmth", "Great, happy to help you!", "Do this."),
        ("structure", "Do:\n1. a\n2. b", "Do a and b"),
        ("hedging", "It might depend, perhaps.", "It is so."),
        ("emoji", "Done 🎉", "Done"),
        ("directness", "Boil water.", "As an AI language model, I cannot boil water."),
    ],
)
def test_each_attribute_is_read_from_the_text(name: str, more: str, less: str) -> None:
    assert value(more, name) > value(less, name)


def test_measure_takes_any_text() -> None:
    assert np.isfinite([measure(text) for text in ("", " ", "!!!", "```", "日本語")]).all()


def test_standardised_ranks_by_hand() -> None:
    raw = np.array([[1.0, 7.0], [3.0, 7.0], [3.0, 7.0], [9.0, 7.0], [100.0, 7.0]])
    assert standardised(raw)[:, 0].tolist() == [-1.0, -0.25, -0.25, 0.5, 1.0]
    assert np.array_equal(standardised(raw)[:, 1], np.zeros(5))


def test_population_is_deterministic_and_without_leaks(path: Path) -> None:
    population = build_candidates(path, CONFIG)
    again = build_candidates(str(path), CONFIG)
    assert np.array_equal(population.records.chosen, again.records.chosen)
    assert population.texts == again.texts
    records = population.records

    def texts(*splits: Split) -> set[int]:
        part = records.of_split(*splits)
        return set(part.chosen.tolist()) | set(part.rejected.tolist())

    unseen, others = texts(Split.UNSEEN), texts(Split.TRAIN, Split.HOLDBACK, Split.VALIDATION, Split.SEEN)
    assert unseen and not unseen & others
    answers = [{population.texts[i].response for i in side} for side in (unseen, others)]
    assert not answers[0] & answers[1]
    assert texts(Split.SEEN) <= texts(Split.TRAIN)
    low, high = np.minimum(records.chosen, records.rejected), np.maximum(records.chosen, records.rejected)
    assert len(set(zip(records.user, low, high, strict=True))) == len(records)
    assert len(population.values) >= 400 and not any(user.adversarial for user in population.users)


def test_long_answers_are_skipped_and_limits_kept(path: Path) -> None:
    population = build_candidates(path, CONFIG)
    assert max(len(text.response.split()) for text in population.texts) <= CONFIG.max_answer_words
    per_prompt = {text.prompt: 0 for text in population.texts}
    for text in population.texts:
        per_prompt[text.prompt] += 1
    assert set(per_prompt.values()) <= set(range(CONFIG.min_answers, CONFIG.max_answers + 1))
    assert "skipped" in population.about


def test_oracle_sees_tastes(path: Path) -> None:
    population, truth = build_candidates(path, CONFIG), candidates_truth(path, CONFIG)
    assert truth.oracle_accuracy(population.records.of_split(Split.SEEN)) > 0.85


def test_gzip_and_plain_read_alike(path: Path) -> None:
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_candidates(packed)) == list(read_candidates(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"prompt": "a"}', "responses"),
        ('{"prompt": "a", "responses": ["b"]}', "line 1"),
        ('{"prompt": "a", "responses": {"m": 3}}', "must be texts"),
        ('{"prompt": "a", "responses": {"m": "b"}}', "raise max_answer_words"),
        ("", "at least 2 are needed"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        build_candidates(file, CONFIG)
    assert "bad.jsonl" in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        build_candidates(tmp_path / "none.jsonl", CONFIG)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"broken\.jsonl\.gz"):
        build_candidates(broken, CONFIG)


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/alpaca_eval is not here")
def test_real_answers() -> None:
    population, truth = build_candidates(REAL, CONFIG), candidates_truth(REAL, CONFIG)
    assert len({text.prompt for text in population.texts}) >= 200
    assert len(population.texts) > 2000
    assert truth.oracle_accuracy(population.records.of_split(Split.SEEN)) > 0.85


def test_a_folder_stands_for_its_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()
    with pytest.raises(DataError, match="none instead of one"):
        build_candidates(folder, CONFIG)
    file = folder / "a.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "responses": {"m": "Because.", "n": "So."}}) + "\n")
    assert list(read_candidates(folder)) == list(read_candidates(file)) == [("Why?", ("Because.", "So."))]
    (folder / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jsonl, b\.jsonl\.gz"):
        list(read_candidates(folder))
