"""Real people's votes: a Polis conversation as a population.

A folder holds ``conversation.json`` (question and topic), ``statements.jsonl.gz``,
``votes.jsonl.gz`` (1 agree, -1 disagree, 0 pass) and, optionally, ``groups.jsonl.gz``.
Prompt = the conversation's question, response = the statement.  Passes are dropped.
Opinion groups were computed from these very votes: they label reports and feed nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User, ValuesPair
from simulation.jsonl import Line, read_lines
from simulation.splits import SplitShares, assign_splits, choose_users

LONGEST_QUESTION = 240
"""Characters; the topic stands in for a longer question, which would crowd out the statement."""

Vote = tuple[str, str, int, int]
"""User id, statement id, +1 or -1, milliseconds."""


def build_polis(
    path: Path,
    users: int,
    seed: int,
    shares: SplitShares,
    values: tuple[ValuesPair, ...] = (),
    minimum_votes: int = 10,
) -> Population:
    """The conversation in folder ``path`` with ``users`` of its people (0: all).

    People with fewer than ``minimum_votes`` agree or disagree votes are left out and counted
    in ``about``.  Raises ``DataError`` with file and line for missing files, bad JSON, votes
    that are not -1, 0 or 1, votes cast twice and statements that do not exist.
    """
    prompt = question(path / "conversation.json")
    statements = _statements(path / "statements.jsonl.gz")
    votes = _votes(path / "votes.jsonl.gz", statements)
    counts = Counter(vote[0] for vote in votes)
    eligible = [user for user, count in counts.items() if count >= minimum_votes]
    chosen = choose_users(eligible, users, seed)
    population = Population(
        name=f"polis:{path.name}",
        texts=tuple(Text(key, prompt, text) for key, text in statements.items()),
        users=_users(chosen, path / "groups.jsonl.gz"),
        records=_records(votes, chosen, list(statements)),
        values=values,
        about=f"Votes of {len(chosen)} people on {len(statements)} statements of a Polis conversation; "
        f"{len(counts) - len(eligible)} people with fewer than {minimum_votes} votes were left out. "
        "Data: The Computational Democracy Project, CC BY 4.0.",
    )
    return assign_splits(population, shares, seed)


def question(path: Path) -> str:
    """The conversation's question on one line; the topic where it is empty or too long."""
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        asked, topic = (" ".join(str(head.get(key, "")).split()) for key in ("question", "topic"))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); give the folder of a Polis conversation"
        ) from error
    if not asked or (topic and len(asked) > LONGEST_QUESTION):
        asked = topic
    if not asked:
        raise DataError(f"{path}: question and topic are both empty; one of them is the prompt")
    return asked[:LONGEST_QUESTION]


def _statements(path: Path) -> dict[str, str]:
    statements: dict[str, str] = {}
    for line in read_lines(path):
        key = line.text("statement_id")
        if key in statements:
            raise line.error(f"statement_id={key!r} stands twice; ids must be unique")
        statements[key] = line.text("text")
    return statements


def _votes(path: Path, statements: dict[str, str]) -> list[Vote]:
    votes: list[Vote] = []
    cast: set[tuple[str, str]] = set()
    for line in read_lines(path):
        vote = _vote(line, statements)
        if vote[:2] in cast:
            raise line.error(f"user_id={vote[0]!r} voted twice on statement {vote[1]!r}; keep his last vote")
        cast.add(vote[:2])
        if vote[2]:
            votes.append(vote)
    return votes


def _vote(line: Line, statements: dict[str, str]) -> Vote:
    statement, value, time = (
        line.text("statement_id"),
        line.values.get("vote"),
        line.values.get("timestamp_ms"),
    )
    if statement not in statements:
        raise line.error(f"statement_id={statement!r} is not among the {len(statements)} statements")
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise line.error(f"vote={value!r} must be 1 (agree), -1 (disagree) or 0 (pass)")
    if time is not None and (isinstance(time, bool) or not isinstance(time, int)):
        raise line.error(f"timestamp_ms={time!r} must be a whole number of milliseconds or null")
    return line.text("user_id"), statement, int(value), time or 0


def _users(chosen: list[str], path: Path) -> tuple[User, ...]:
    groups = {line.text("user_id"): line.text("group") for line in read_lines(path)} if path.exists() else {}
    return tuple(User(user, group=groups.get(user, "")) for user in chosen)


def _records(votes: list[Vote], chosen: list[str], statements: list[str]) -> Records:
    user = {key: index for index, key in enumerate(chosen)}
    text = {key: index for index, key in enumerate(statements)}
    return Records.from_rows(
        (user[u], text[s], NO_TEXT, value, 0, time, int(Split.TRAIN))
        for u, s, value, time in votes
        if u in user
    )
