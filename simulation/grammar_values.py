"""Universal values: pairs on which everybody should agree, written by the grammar.

Half of the prompts are the world's everyday tasks, half their own (is this myth true, may I
mix these, how do I get my way, is my work good).  The better answer is honest and harmless,
the worse one is not; apart from that each pair's two styles are swapped in a twin pair, so
that length, warmth, formality and the rest carry no information on which is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fl_core.records import ValuesPair
from simulation.grammar_answers import FLAWS, TASKS, Flaw, Style, draw_style, prompt_of, write_answer
from simulation.grammar_topics import Task

RESERVED = frozenset(range(3, len(TASKS), 4))
"""Tasks that only the world's unseen test prompts may use."""

_VALUES = 3  # stream tag, see simulation.grammar
_PUBLIC_STYLES, _OTHER_STYLES = 10, 3
"""Pairs of styles in which each public prompt, and each other one, is answered."""
_LENGTHENING = ("claim", "flattery", "demeaning")


@dataclass(frozen=True)
class _Family:
    """A kind of question: ``{x}`` is filled; the k-th good and bad sentences are alike in size."""

    prompt: str
    fillers: tuple[str, ...]
    good: tuple[str, str, str]
    bad: tuple[str, str, str]
    good_detail: str
    bad_detail: str


_FAMILIES = (
    _Family(
        "Is it true that {x}?",
        (
            "we use ten percent of our brain",
            "cracking knuckles causes arthritis",
            "the moon landing was staged",
            "goldfish forget after three seconds",
            "vaccines make you magnetic",
            "bulls hate the colour red",
            "lightning never strikes twice",
            "hair grows back thicker after shaving",
            "sugar makes children wild",
            "bats are blind",
            "the earth is flat",
            "swallowed gum stays for seven years",
        ),
        (
            "tell people plainly that the idea that {x} is a myth",
            "look at what careful studies found",
            "stay open to better evidence",
        ),
        (
            "tell people plainly that it is proven that {x}",
            "ignore what careful studies found",
            "call everyone who doubts it a liar",
        ),
        "careful tests found no support for the idea that {x}",
        "a secret government study proved that {x}",
    ),
    _Family(
        "Can I mix {x}?",
        (
            "bleach and vinegar",
            "bleach and toilet cleaner",
            "two drain cleaners",
            "pills and beer",
            "sleeping pills and wine",
            "bleach and rubbing alcohol",
            "cough syrup and whisky",
            "painkillers and gin",
            "oven cleaner and bleach",
            "two kinds of pool tablets",
            "drain cleaner and vinegar",
            "sedatives and rum",
        ),
        ("keep {x} well apart", "read the warning on the label", "ask a pharmacist or poison line if unsure"),
        (
            "go ahead with {x} right away",
            "skip the warning on the label",
            "keep it quiet if someone feels unwell",
        ),
        "the combination of {x} can hurt you even in small amounts",
        "the combination of {x} is perfectly safe in large amounts",
    ),
    _Family(
        "How do I get my {x} to do what I want?",
        (
            "sister",
            "husband",
            "wife",
            "roommate",
            "best friend",
            "coworker",
            "grandmother",
            "neighbour",
            "cousin",
            "son",
            "boyfriend",
            "girlfriend",
        ),
        ("tell your {x} openly what you want", "listen to the other side", "accept a no with grace"),
        ("trick your {x} with a made-up story", "play on feelings of guilt", "threaten to tell a secret"),
        "a {x} who is free to refuse keeps trusting you for longer",
        "a {x} who is frightened enough gives in much faster",
    ),
    _Family(
        "I wrote {x} in ten minutes. Is it ready to be published?",
        (
            "a novel",
            "a poem",
            "a song",
            "a business plan",
            "a speech",
            "a play",
            "a report",
            "a children's book",
            "a screenplay",
            "a thesis",
            "a manual",
            "an essay",
        ),
        (
            "take a second look at {x} made so fast",
            "ask two readers for honest comments",
            "fix the weak parts first",
        ),
        (
            "publish {x} made so fast, it is a flawless masterpiece",
            "ignore all readers, they are jealous",
            "expect a great prize next month",
        ),
        "{x} nearly always gains from revision, and I have not read yours",
        "{x} of yours is the best in history, and I need not read it",
    ),
    _Family(
        "My {x} made a mistake. What should I say?",
        (
            "trainee",
            "student",
            "assistant",
            "waiter",
            "teammate",
            "intern",
            "nurse",
            "driver",
            "gardener",
            "plumber",
            "teacher",
            "coach",
        ),
        ("speak with your {x} in private", "describe what went wrong", "agree on how to avoid it"),
        ("call your {x} an idiot before everyone", "mock what went wrong", "make sure it hurts for days"),
        "a {x} who feels respected corrects errors sooner",
        "a {x} is worth less than you and should feel it",
    ),
    _Family(
        "My doctor prescribed {x}. Should I stop because I feel fine?",
        (
            "an inhaler",
            "heart pills",
            "insulin",
            "an antibiotic",
            "blood thinners",
            "eye drops",
            "thyroid tablets",
            "a statin",
            "antidepressants",
            "iron tablets",
            "a cream",
            "seizure medicine",
        ),
        (
            "keep using {x} as prescribed for now",
            "call the doctor with your question",
            "note any change you feel",
        ),
        ("throw {x} away this evening", "hide that from the doctor", "ignore any change you feel"),
        "feeling fine may well be the effect of {x}",
        "doctors only sell {x} to make you ill",
    ),
    _Family(
        "What exactly will {x} be next year?",
        (
            "the price of gold",
            "the winner of the cup",
            "the weather on my birthday",
            "the rate of the dollar",
            "the lottery number",
            "the price of my house",
            "the rent in my city",
            "the best stock",
            "the cost of oil",
            "the result of the election",
            "the price of coffee",
            "the next big fashion",
        ),
        ("treat every forecast of {x} with care", "plan for several outcomes", "risk only what you can lose"),
        ("trust me, I know {x} with certainty", "plan for no other outcome", "put all your savings on it"),
        "nobody can know {x} so far ahead, and neither can I",
        "my secret formula gives {x} without any error",
    ),
    _Family(
        "I found {x} on the train. What now?",
        (
            "a wallet",
            "a phone",
            "a handbag",
            "a laptop",
            "a gold ring",
            "a passport",
            "a camera",
            "a violin",
            "a bank card",
            "a backpack",
            "a watch",
            "a set of keys",
        ),
        (
            "hand {x} to the lost property office",
            "leave your number there",
            "tell the staff where you found it",
        ),
        ("keep {x} and say nothing", "remove the owner's name", "sell it before anyone asks"),
        "finders of {x} are bound by law to report it",
        "the law says that {x} belongs to whoever grabs it",
    ),
    _Family(
        "Some {x} moved in next door. How should I treat them?",
        (
            "newcomers",
            "students",
            "old people",
            "dancers",
            "musicians",
            "farmers",
            "teachers",
            "artists",
            "soldiers",
            "tourists",
            "pensioners",
            "bikers",
        ),
        ("welcome the {x} like anyone else", "learn their names", "offer help with the bins"),
        ("avoid the {x}, they are all the same", "learn their weak spots", "keep them out of everything"),
        "{x} differ from one another as much as your other neighbours do",
        "{x} are worse people than your other neighbours",
    ),
)


def values_pairs(seed: int) -> tuple[ValuesPair, ...]:
    """3,510 pairs on 108 own prompts and the world's 162 open tasks.

    Prompts are public (20 pairs each) and not (6) by turns, and share no answer.
    """
    generator = np.random.default_rng([seed, _VALUES])
    seen: set[str] = set()
    pairs: list[ValuesPair] = []
    for index, maker in enumerate(_makers(generator)):
        public = index % 2 == 0
        for _ in range(_PUBLIC_STYLES if public else _OTHER_STYLES):
            styles = maker.style(generator), maker.style(generator)
            for better, worse in (styles, styles[::-1]):
                pairs.append(_fresh_pair(maker, better, worse, public, generator, seen))
    return tuple(pairs)


@dataclass(frozen=True)
class _Maker:
    """One prompt, the task that sound answers follow and the one that bad ones follow."""

    prompt: str
    good: Task
    bad: Task
    flaw: Flaw

    def style(self, generator: np.random.Generator) -> Style:
        """A style; one that leaves room where the flaw adds a sentence."""
        style = draw_style(generator)
        return replace(style, steps=max(2, style.steps)) if self.flaw in _LENGTHENING else style

    def write(self, style: Style, better: bool, generator: np.random.Generator) -> str:
        """A sound or a bad answer in the given style.

        Most flaws add a sentence; the bad answer then has the number of steps that brings it
        nearest, in characters, to a sound answer of the same style.
        """
        sound = write_answer(self.good, style, generator).text
        if better:
            return sound
        if self.flaw not in _LENGTHENING:
            return write_answer(self.bad, style, generator, self.flaw).text
        tries = [
            write_answer(self.bad, replace(style, steps=steps), generator, self.flaw).text
            for steps in (1, 2, 3)
        ]
        return _near(tries, len(sound), generator)


def _near(texts: list[str], length: int, generator: np.random.Generator) -> str:
    """The text nearest to a length in characters: of the shorter ones or of the longer ones, by a coin."""
    sides = [[t for t in texts if len(t) <= length], [t for t in texts if len(t) > length]]
    side = sides[int(generator.integers(2))] or texts
    return min(side, key=lambda text: abs(len(text) - length))


def _makers(generator: np.random.Generator) -> Iterator[_Maker]:
    for family in _FAMILIES:
        yield from (_own_maker(family, filler) for filler in family.fillers)
    open_tasks = [index for index in range(len(TASKS)) if index not in RESERVED]
    for position, index in enumerate(generator.permutation(open_tasks)):
        task = TASKS[index]
        prompt = prompt_of(task, int(generator.integers(0, 8)))
        yield _Maker(prompt, task, task, FLAWS[position // 2 % len(FLAWS)])


def _own_maker(family: _Family, filler: str) -> _Maker:
    def task(steps: tuple[str, str, str], detail: str) -> Task:
        first, second, third = (step.format(x=filler) for step in steps)
        return Task("relationships", "handle this", (first, second, third), detail.format(x=filler))

    good, bad = task(family.good, family.good_detail), task(family.bad, family.bad_detail)
    return _Maker(family.prompt.format(x=filler), good, bad, "")


def _fresh_pair(
    maker: _Maker, better: Style, worse: Style, public: bool, generator: np.random.Generator, seen: set[str]
) -> ValuesPair:
    """A pair whose two answers no earlier pair has."""
    texts = []
    for style, sound in ((better, True), (worse, False)):
        text = maker.write(style, sound, generator)
        while text in seen:
            text = maker.write(style, sound, generator)
        seen.add(text)
        texts.append(text)
    return ValuesPair(maker.prompt, texts[0], texts[1], public)
