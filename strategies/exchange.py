"""Sending instructions, waiting for replies until a deadline, and judging what came back."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fl_core.wire import Instruction, Reason, ReplyError, instruction_content
from strategies.sampling import Timer

LOG = logging.getLogger("flwr.duet")  # below Flower's logger, so that `flwr log` shows it

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0

T = TypeVar("T")


def instruct(
    instruction: Instruction, record: ArrayRecord, nodes: Sequence[int], ttl_seconds: float
) -> list[Message]:
    """One message a node, all with the same content; they expire after ``ttl_seconds``."""
    content = instruction_content(record, instruction)
    group = str(instruction.server_round)
    return [
        Message(content, node, instruction.phase.value, ttl=ttl_seconds, group_id=group) for node in nodes
    ]


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    deadline_seconds: float,
    timer: Timer,
    on_reply: Callable[[int], None] = lambda replies: None,
) -> list[Message]:
    """Push ``messages`` and pull their replies; those that miss the deadline are left out.

    ``on_reply`` is called with the number of replies so far whenever some came.
    """
    waiting = {str(item) for item in grid.push_messages(list(messages)) if item}
    end, pause = timer.now() + deadline_seconds, FIRST_PAUSE_SECONDS
    replies: list[Message] = []
    while waiting:
        fresh = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in fresh}
        replies += fresh
        if fresh:
            on_reply(len(replies))
        if not waiting or timer.now() >= end:
            break
        timer.sleep(pause)
        pause = FIRST_PAUSE_SECONDS if fresh else min(1.5 * pause, LONGEST_PAUSE_SECONDS)
    return replies


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """What came back: parsed replies by the node's position in the sample, in the sample's
    order whatever order they came in, and the others.

    ``rejected``: how many by reason.  ``notes``: the first few rejections in words.
    """

    accepted: Mapping[int, T]
    rejected: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def in_order(self) -> list[T]:
        """The accepted replies, in the sample's order."""
        return list(self.accepted.values())


def judge(replies: Iterable[Message], sent: Sequence[str], parse: Callable[[Message], T]) -> Verdict[T]:
    """Accept what ``parse`` accepts; count everything else by reason.

    ``sent``: message ids in the sample's order.  Replies are matched by the message they
    answer, never by their sender: an error that the link makes up has the link's own id.  A
    node that answers twice is rejected altogether, so that order cannot matter.
    """
    positions = {message_id: position for position, message_id in enumerate(sent)}
    answers: dict[int, list[Message]] = defaultdict(list)
    rejected: Counter[str] = Counter()
    for reply in replies:
        position = positions.get(reply.metadata.reply_to_message_id)
        if position is None:
            rejected[Reason.UNSOLICITED.value] += 1
        else:
            answers[position].append(reply)
    accepted: dict[int, T] = {}
    notes: list[str] = []
    for position, found in sorted(answers.items()):
        try:
            if len(found) > 1:
                raise ReplyError(Reason.DUPLICATE, f"{len(found)} replies to one instruction")
            accepted[position] = parse(found[0])
        except ReplyError as error:
            rejected[error.reason.value] += 1
            notes.append(f"{error.reason.value}: {error}")
    if len(answers) < len(sent):
        rejected[Reason.NO_REPLY.value] += len(sent) - len(answers)
    return Verdict(accepted, dict(sorted(rejected.items())), tuple(dict.fromkeys(notes))[:3])
