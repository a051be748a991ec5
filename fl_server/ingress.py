"""A reply that cannot be decoded loses its node and not the run.

Flower decodes what nodes pushed inside of ``Grid.pull_messages``, before any strategy or
``validate_reply`` sees it, and an object that is not what its head says (a metric record that is no
protobuf, an array without a shape) raises there: one node's bytes would end the run, and the other
replies of the same pull, which the SuperLink hands out once, would be lost.  An array may also name
one chunk a million times, and is then built in memory.

``guarded`` puts a decoder in the place of Flower's that gives an error reply instead.  Flower has no
hook for it, so the name that its grid looks up is replaced; the version of Flower is pinned, and
``tests/fl_server/test_ingress.py`` fails where a new one decodes elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping

from flwr.app import Error, Message
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.superlink.grid import http_grid

from fl_core.errors import WireError
from fl_core.wire import one_line
from strategies.exchange import LOG

DECODER = "inflate_object_from_contents"
"""The name in Flower's grid that decodes a message."""

REPLY_BYTES_LIMIT = 2**30
"""Bytes of arrays that one reply may unfold to: a shared adapter of 268 million numbers."""

UNREADABLE_CODE = 110
"""Our code for a reply that could not be decoded; no node sends it."""

Decoder = Callable[[str, dict[str, bytes]], object]


@contextlib.contextmanager
def guarded(limit_bytes: int = REPLY_BYTES_LIMIT) -> Iterator[None]:
    """While it lasts, replies that cannot be decoded come as error replies."""
    decode: Decoder = getattr(http_grid, DECODER)
    setattr(http_grid, DECODER, functools.partial(decoded, decode, limit_bytes))
    try:
        yield
    finally:
        setattr(http_grid, DECODER, decode)


def decoded(decode: Decoder, limit_bytes: int, message_id: str, contents: dict[str, bytes]) -> Message:
    """The message that ``contents`` (bytes by object id) make up, or an error reply in its place."""
    try:
        _check_size(contents, limit_bytes)
        found = decode(message_id, dict(contents))
        if not isinstance(found, Message):
            raise WireError(f"the reply is a {type(found).__name__}, not a Message")
        return found
    except Exception as error:  # a decoder of strangers' bytes may raise anything
        LOG.warning("a reply cannot be decoded: %s", one_line(f"{type(error).__name__}: {error}"))
        return _unreadable(contents.get(message_id, b""))


def _check_size(contents: Mapping[str, bytes], limit_bytes: int) -> None:
    """Raise ``WireError`` where arrays would unfold to more than ``limit_bytes``; builds none."""
    total = 0
    for data in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(data)
        if kind == "Array":
            body = data[data.index(b"\x00") + 1 :]
            sizes = [len(contents[child]) for child in children]
            total += sum(sizes[place] for place in json.loads(body)["arraychunk_ids"])
    if total > limit_bytes:
        raise WireError(f"the reply's arrays unfold to {total} bytes, more than {limit_bytes}")


def _unreadable(content: bytes) -> Message:
    """An error reply to whatever the undecodable message's envelope says that it answers."""
    answered, run_id, kind = "", 0, "train"
    with contextlib.suppress(Exception):  # then it answers nothing, and its node counts as silent
        envelope = MessageProto.FromString(get_object_body(content, Message)).metadata
        answered, run_id = envelope.reply_to_message_id, envelope.run_id
    metadata = Metadata(run_id, "", 0, 0, answered, "", time.time(), 0.0, kind)
    return make_message(metadata, error=Error(UNREADABLE_CODE, "the reply cannot be decoded"))
