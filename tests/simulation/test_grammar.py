"""The grammar: enough varied texts, labels that match them, no leak of reserved tasks."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from fl_core.errors import ConfigurationError
from simulation.grammar import ATTRIBUTES, RESERVED, Prompt, pretraining_turns, values_pairs, world_texts
from simulation.grammar_answers import FLAWS, TASKS, Style, length_attribute, write_answer, your
from simulation.grammar_phrases import FRAMES


@cache
def texts() -> tuple[Prompt, ...]:
    return world_texts(0)


def test_at_least_200_prompts_with_a_dozen_answers_all_distinct() -> None:
    assert len({prompt.prompt for prompt in texts()}) >= 200
    assert min(len({answer.text for answer in prompt.answers}) for prompt in texts()) >= 12
    answers = [answer.text for prompt in texts() for answer in prompt.answers]
    assert len(set(answers)) == len(answers)


def test_answers_are_short_and_fully_filled_in() -> None:
    answers = [answer.text for prompt in texts() for answer in prompt.answers]
    words = [len(text.split()) for text in answers]
    assert 20 <= np.median(words) <= 36 and np.percentile(words, 95) <= 70
    assert not any(mark in text for text in answers for mark in ("{", "}", "|", "  "))


def test_every_prompt_offers_both_sides_of_each_attribute() -> None:
    spans = []
    for prompt in texts():
        sound = np.array([a.attributes for a in prompt.answers if a.honest and a.harmless])
        assert np.all(np.abs(sound) <= 1)
        spans.append(np.ptp(sound, axis=0))
    length, others = np.array(spans)[:, 0], np.array(spans)[:, 1:]
    assert np.all(others == 2)
    assert length.min() > 0.6 and np.median(length) > 1.0


def test_attributes_are_not_confounded_with_each_other() -> None:
    """Length grows with warmth, depth and jokes; the others are drawn apart."""
    table = np.array([answer.attributes for prompt in texts() for answer in prompt.answers])
    correlation = np.corrcoef(table.T)[1:, 1:]
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.1
    assert np.abs(np.corrcoef(table.T)[0, 1:]).max() < 0.6


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("structure", lambda text: "\n- " in text or "\n1. " in text),
        ("emoji", lambda text: any(ord(character) > 0x2700 for character in text)),
    ],
)
def test_attribute_is_readable_in_the_text(name: str, present) -> None:  # type: ignore[no-untyped-def]
    column = ATTRIBUTES.index(name)
    for prompt in texts():
        for answer in prompt.answers:
            assert present(answer.text) == (answer.attributes[column] > 0)


def test_flawed_answers_are_marked_and_a_minority() -> None:
    for prompt in texts():
        assert sum(not (answer.honest and answer.harmless) for answer in prompt.answers) == 3
    kinds = Counter((a.honest, a.harmless) for prompt in texts() for a in prompt.answers)
    assert kinds[False, True] > 150 and kinds[True, False] > 150


def test_each_flaw_changes_text_and_mark() -> None:
    style = Style(2, 0, 1, 0, -1, 0, -1, -1)
    plain = write_answer(TASKS[0], style, np.random.default_rng(0))
    assert plain.honest and plain.harmless
    for flaw in FLAWS:
        flawed = write_answer(TASKS[0], style, np.random.default_rng(0), flaw)
        assert flawed.text != plain.text
        assert (flawed.honest, flawed.harmless) in {(False, True), (True, False)}
    with pytest.raises(ValueError, match="flaw='lie'"):
        write_answer(TASKS[0], style, np.random.default_rng(0), "lie")  # type: ignore[arg-type]


def test_length_attribute_by_hand() -> None:
    assert length_attribute("word " * 28) == pytest.approx(0.0)
    assert length_attribute("word " * 84) == pytest.approx(1.0)
    assert length_attribute("word") == -1.0


def test_goals_turn_to_the_asker() -> None:
    assert your("introduce myself to my team") == "introduce yourself to your team"
    assert your("make my mime") == "make your mime"


def test_same_seed_same_texts_other_seed_other_texts() -> None:
    assert world_texts(3, prompts=20) == world_texts(3, prompts=20)
    ours = {answer.text for prompt in texts() for answer in prompt.answers}
    theirs = {answer.text for prompt in world_texts(1) for answer in prompt.answers}
    assert len(ours & theirs) < 0.1 * len(ours)


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"prompts": 10_000}, {"answers": 3, "bad": 2}])
def test_impossible_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="="):
        world_texts(0, **wrong)


def test_pretraining_has_no_reserved_task_and_no_world_answer() -> None:
    turns = pretraining_turns(0, dialogues=4000)
    assert turns == pretraining_turns(0, dialogues=4000)
    assert {len(dialogue) for dialogue in turns} == {2}
    prompts = {dialogue[0] for dialogue in turns}
    reserved = {frame.format(goal=TASKS[index].goal) for index in RESERVED for frame in FRAMES}
    assert not prompts & reserved
    details = [TASKS[index].detail for index in RESERVED]
    everything = "\n".join(turn for dialogue in turns for turn in dialogue)
    assert not any(detail in everything for detail in details)
    world = {answer.text for prompt in texts() for answer in prompt.answers}
    assert sum(dialogue[1] in world for dialogue in turns) < 0.001 * len(turns)


def test_values_pairs_are_enough_and_their_halves_disjoint() -> None:
    pairs = values_pairs(0)
    assert pairs == values_pairs(0)
    halves = {public: [pair for pair in pairs if pair.public == public] for public in (True, False)}
    assert len(halves[True]) > 2 * len(halves[False]) and len(halves[False]) >= 800
    prompts = [{pair.prompt for pair in half} for half in halves.values()]
    answers = [{text for pair in half for text in (pair.chosen, pair.rejected)} for half in halves.values()]
    assert not prompts[0] & prompts[1]
    assert not answers[0] & answers[1]
    assert sum(map(len, answers)) == 2 * len(pairs)


def test_values_pairs_touch_no_reserved_task_and_no_world_answer() -> None:
    pairs = values_pairs(0)
    reserved = {frame.format(goal=TASKS[index].goal) for index in RESERVED for frame in FRAMES}
    assert not {pair.prompt for pair in pairs} & reserved
    world = {answer.text for prompt in texts() for answer in prompt.answers}
    assert not world & {text for pair in pairs for text in (pair.chosen, pair.rejected)}


def test_values_pairs_cannot_be_told_by_style() -> None:
    """Neither length nor a list nor an emoji orders the pairs much better than chance."""
    for measure in (len, lambda text: text.count("\n"), lambda text: sum(ord(c) > 0x2700 for c in text)):
        for public in (True, False):
            pairs = [pair for pair in values_pairs(0) if pair.public == public]
            signs = [np.sign(measure(pair.chosen) - measure(pair.rejected)) for pair in pairs]
            assert abs(np.mean(signs)) < 0.15
