"""Pairwise choices from JSON lines, and a converter for UKPConvArg.

One line is one choice: ``user_id``, ``prompt``, ``chosen``, ``rejected``, and optionally
``timestamp`` (ISO 8601, or a number of milliseconds since 1970) and ``context``; other keys
are ignored.  Unseen test pairs are those of held-out prompts: whole prompts, so that neither
text of such a pair is in anybody's training.  In UKPConvArg a prompt is one side of a debate,
whose arguments occur under no other prompt.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fl_core.errors import DataError
from fl_core.records import Population, Records, Split, Text, User, ValuesPair
from simulation.jsonl import Line, read_lines
from simulation.splits import SplitShares, assign_splits, choose_users


@dataclass(frozen=True)
class Choice:
    """One line: ``time`` in milliseconds since 1970 (0: unknown)."""

    user_id: str
    prompt: str
    chosen: str
    rejected: str
    time: int
    context: str


def build_pairs(
    path: Path,
    users: int,
    seed: int,
    shares: SplitShares,
    values: tuple[ValuesPair, ...] = (),
    minimum_pairs: int = 5,
) -> Population:
    """The choices in ``path`` (.jsonl or .jsonl.gz) of ``users`` people (0: all).

    People with fewer than ``minimum_pairs`` choices are left out and counted in ``about``.
    Raises ``DataError`` with file and line where a line cannot be used.
    """
    choices = [_choice(line) for line in read_lines(path)]
    counts = Counter(choice.user_id for choice in choices)
    eligible = [user for user, count in counts.items() if count >= minimum_pairs]
    if not eligible:
        raise DataError(
            f"{path}: none of {len(counts)} users has minimum_pairs={minimum_pairs} choices; lower it"
        )
    chosen = choose_users(eligible, users, seed)
    kept = set(chosen)
    population = _population(path, [c for c in choices if c.user_id in kept], chosen, values)
    about = f"; {len(counts) - len(eligible)} people with fewer than {minimum_pairs} choices were left out."
    population = replace(population, about=population.about + about)
    return assign_splits(population, shares, seed)


def convert_ukpconvarg(source: Path, out: Path, minimum_pairs: int = 10) -> int:
    """Write UKPConvArg's judgments in the form that ``build_pairs`` reads; returns lines written.

    ``source``: ``judgments.jsonl.gz`` (Habernal and Gurevych 2016, CC BY 4.0).  Prompt =
    debate and stance.  Judges with fewer than ``minimum_pairs`` judgments are left out, and so
    are judgments between two identical arguments.  ``out``: .jsonl or .jsonl.gz.
    """
    lines = [line for line in read_lines(source) if line.text("chosen") != line.text("rejected")]
    counts = Counter(line.text("user_id") for line in lines)
    rows = [_converted(line) for line in lines if counts[line.text("user_id")] >= minimum_pairs]
    if not rows:
        raise DataError(f"{source}: no judge has minimum_pairs={minimum_pairs} judgments; lower it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        gzip.open(out, "wt", encoding="utf-8")
        if out.suffix == ".gz"
        else out.open("w", encoding="utf-8") as file
    ):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return len(rows)


def milliseconds(line: Line, value: object) -> int:
    """Milliseconds since 1970 of a timestamp; 0 where there is none; without a zone it is UTC.

    Raises ``DataError`` naming the line where it is neither ISO 8601 nor a finite number.
    """
    try:
        if value is None or value == "":
            return 0
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.replace(" UTC", "+00:00"))
            return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise line.error(f"timestamp={value!r} must be ISO 8601 or milliseconds since 1970")


def _choice(line: Line) -> Choice:
    chosen, rejected = line.text("chosen"), line.text("rejected")
    if chosen == rejected:
        raise line.error("chosen and rejected are the same text; leave such a line out")
    return Choice(
        user_id=line.text("user_id"),
        prompt=line.text("prompt"),
        chosen=chosen,
        rejected=rejected,
        time=milliseconds(line, line.values.get("timestamp")),
        context=str(line.values.get("context") or ""),
    )


def _converted(line: Line) -> dict[str, object]:
    return {
        "user_id": line.text("user_id"),
        "prompt": f"{line.text('debate')} {line.text('stance')}",
        "chosen": line.text("chosen"),
        "rejected": line.text("rejected"),
        "timestamp": milliseconds(line, line.values.get("timestamp")),
    }


def _population(
    path: Path, choices: list[Choice], users: list[str], values: tuple[ValuesPair, ...]
) -> Population:
    user = {key: index for index, key in enumerate(users)}
    contexts = {key: i for i, key in enumerate(sorted({choice.context for choice in choices}))}
    texts: dict[tuple[str, str], int] = {}
    rows = [
        (
            user[c.user_id],
            texts.setdefault((c.prompt, c.chosen), len(texts)),
            texts.setdefault((c.prompt, c.rejected), len(texts)),
            1,
            contexts[c.context],
            c.time,
            int(Split.TRAIN),
        )
        for c in choices
    ]
    return Population(
        name=f"pairs:{path.name.removesuffix('.gz').removesuffix('.jsonl')}",
        texts=tuple(Text(str(index), *content) for content, index in texts.items()),
        users=tuple(User(key) for key in users),
        records=Records.from_rows(rows),
        values=values,
        contexts=tuple(contexts),
        about=f"Pairwise choices of {len(users)} people between {len(texts)} texts, from {path.name}",
    )
