"""The one gate through which anything leaves a node, with its list of all that may.

Every reply of the ClientApp passes ``Egress``, error replies too.  It does not hand a reply on:
it reads the reply by the schema below and writes a new one from what it read, so that nothing
that the schema does not name can be on the wire, not in a key, a header, or the envelope.

Schema.  The answer to an instruction is one of

- the sum of the users' shared updates (float32, finite, exactly the names and shapes of the
  arm's shared layout) and the number of users that take part, which public facts decide (on a
  device the constant 1); phase ``train``;
- the number of users alone; phases ``train`` (0: nobody takes part) and ``train.personalize``;
- an error of ``REFUSALS``: a code and a fixed sentence by class, at most with the name of a
  setting that every configuration has; no text of an exception, which may quote a user or name
  a path on the device;
- the sum of *personal* adapters, in phase ``train.upload``: only under
  ``method="fdlora-as-printed"`` with ``federation.leak-personal-weights``, which leak by design.

A reply that does not fit is replaced by the error ``Refusal.EGRESS``; why stays in the local log.
What the gate cannot see: numbers hidden in the values of the update.  ``tests/fl_client/
test_egress.py`` looks for those in the bytes of whole rounds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict

from fl_core.config import RunConfig
from fl_core.errors import AdapterError, ConfigurationError, ModelError, PrivacyError, WireError
from fl_core.wire import (
    Instruction,
    Phase,
    Reason,
    ReplyError,
    Shapes,
    reply_content,
    validate_count,
    validate_reply,
)


class Refusal(enum.Enum):
    """All errors that a node tells the server: (code, sentence).  The codes are Duet's own."""

    FAILED = (100, "training failed on the node; see the node's local log")
    CONFIGURATION = (101, "the node refuses a setting; see the node's local log")
    MODEL = (102, "the node's base model does not fit the run; see the node's local log")
    INSTRUCTION = (103, "the instruction does not have the agreed form")
    FORBIDDEN = (104, "personal adapters do not leave this node")
    EGRESS = (105, "refused to send: the reply is not of the agreed form; see the node's local log")

    @property
    def code(self) -> int:
        """The error's number on the wire."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """The error's text on the wire."""
        return self.value[1]


SETTINGS = tuple(sorted(RunConfig().to_flat()))
"""The names, and nothing else of a configuration, that an error may hold."""

REFUSALS = frozenset(
    [(refusal.code, refusal.sentence) for refusal in Refusal]
    + [(Refusal.CONFIGURATION.code, f"{Refusal.CONFIGURATION.sentence}: {name}") for name in SETTINGS]
)
"""Every (code, text) that an error reply may hold."""

_LEADING_NAME = re.compile(r"[a-z0-9.-]+(?=[=:])")


class RefusedToSendError(PrivacyError):
    """A reply was about to leave that the schema does not allow."""


class ForbiddenUploadError(PrivacyError):
    """Somebody asked for personal adapters in a run whose method never sends them."""


@dataclass(frozen=True)
class Allowance:
    """What may leave in answer to one instruction.

    ``shapes``: of the arrays by name; None where no array may leave.  ``users``: the only number
    that may be told beside 0.
    """

    shapes: Shapes | None
    users: int


def refuse_upload(config: RunConfig) -> None:
    """Raise ``ForbiddenUploadError`` unless the method leaks by design and its flag is set."""
    if config.method != "fdlora-as-printed" or not config.federation.leak_personal_weights:
        raise ForbiddenUploadError(f"method={config.method!r}: personal adapters do not leave this node")


def allowance(config: RunConfig, asked: Instruction, shapes: Shapes, users: int) -> Allowance:
    """What may answer ``asked``; ``shapes``: of the arm's shared layout, ``users``: those taking part.

    Raises ``ForbiddenUploadError`` where personal adapters are asked for and may not leave.
    """
    if asked.phase is Phase.UPLOAD:
        refuse_upload(config)
    return Allowance(None if asked.phase is Phase.PERSONALIZE else shapes, users)


def refusal(error: Exception) -> Error:
    """The error to tell the server: decided by the class, and by no text but a setting's name."""
    if isinstance(error, ConfigurationError):
        name = _setting_in(str(error))
        found = Refusal.CONFIGURATION
        return Error(found.code, f"{found.sentence}: {name}" if name else found.sentence)
    classes: dict[type[Exception], Refusal] = {
        RefusedToSendError: Refusal.EGRESS,
        ForbiddenUploadError: Refusal.FORBIDDEN,
        ModelError: Refusal.MODEL,
        WireError: Refusal.INSTRUCTION,
        AdapterError: Refusal.INSTRUCTION,
    }
    found = next((kind for cls, kind in classes.items() if isinstance(error, cls)), Refusal.FAILED)
    return Error(found.code, found.sentence)


def released(reply: object, instruction: Message, allowed: Callable[[], Allowance]) -> Message:
    """``reply`` as the schema reads it, written anew.

    ``allowed`` is asked only where something else than an error leaves.  Raises
    ``RefusedToSendError`` where the reply does not fit.
    """
    if not isinstance(reply, Message):
        raise RefusedToSendError(f"the reply is a {type(reply).__name__}, not a Message")
    if reply.has_error():
        return Message(_known(reply.error), reply_to=instruction)
    try:
        return Message(_content(reply, allowed()), reply_to=instruction)
    except ReplyError as error:
        raise RefusedToSendError(
            f"the reply does not fit the schema ({error.reason.value}: {error})"
        ) from error


class Egress:
    """A mod around every handler of the ClientApp: what it returns is all that leaves.

    ``allowed`` gives the allowance of a message; ``log`` keeps an error on this machine.
    """

    def __init__(
        self,
        allowed: Callable[[Message, Context], Allowance],
        log: Callable[[Context, Exception], None],
    ) -> None:
        self._allowed, self._log = allowed, log

    def __call__(
        self, message: Message, context: Context, handler: Callable[[Message, Context], Message]
    ) -> Message:
        """The handler's reply where the schema allows it; else, or where it raises, an error reply."""
        try:
            reply = handler(message, context)
            return released(reply, message, lambda: self._allowed(message, context))
        except Exception as error:  # not to go on: to keep its text on this machine
            self._log(context, error)
            return Message(refusal(error), reply_to=message)


def _content(reply: Message, allowed: Allowance) -> RecordDict:
    """The reply's numbers as a new content; ``ReplyError`` or ``RefusedToSendError`` on anything else."""
    if allowed.shapes is None:
        return reply_content(_public(validate_count(reply), allowed))
    try:
        arrays, count = validate_reply(reply, allowed.shapes)
    except ReplyError as error:
        if error.reason is Reason.ABSENT:
            return reply_content(0)
        raise
    return reply_content(_public(count, allowed), arrays)


def _public(count: int, allowed: Allowance) -> int:
    """``count`` where public facts decide it; a number in its place could tell anything."""
    if count not in (0, allowed.users):
        raise RefusedToSendError(f"count={count} must be 0 or {allowed.users}, the users that take part")
    return count


def _known(error: Error) -> Error:
    if type(error.code) is not int or (error.code, error.reason) not in REFUSALS:
        raise RefusedToSendError("the error reply is none of the fixed ones")
    return Error(error.code, error.reason)


def _setting_in(text: str) -> str:
    """The name of a setting that ``text`` starts with ("privacy.clip=-1: must be ..."), else nothing."""
    match = _LEADING_NAME.match(text)
    return match[0] if match and match[0] in SETTINGS else ""
