"""Replies that no decoder can read, through Flower's own grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid import http_grid

from fl_core.wire import (
    Arrays,
    Instruction,
    Phase,
    instruction_content,
    reply_content,
    to_record,
    validate_reply,
)
from fl_server.ingress import DECODER, UNREADABLE_CODE, guarded
from strategies.exchange import judge

ARRAYS: Arrays = {"x": np.arange(3, dtype=np.float32)}


class SuperLink:
    """What a SuperLink holds: messages as objects, which it hands out and does not look into."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.objects: dict[str, bytes] = {}
        self.trees: list[Any] = []

    def push(self, message: Message, forge: Callable[[str, bytes], bytes] = lambda kind, data: data) -> None:
        for object_id, item in get_all_nested_objects(message).items():
            self.objects[object_id] = forge(type(item).__qualname__, item.deflate())
        message.metadata.__dict__["_message_id"] = message.object_id
        self.messages.append(message)
        self.trees.append(get_object_tree(message))

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        protos = [message_to_proto(Message(m.content, reply_to=m)) for m in self.messages]
        for proto, message in zip(protos, self.messages, strict=True):
            proto.metadata.message_id = message.metadata.message_id
        return PullAppMessagesResponse(messages_list=protos, message_object_trees=self.trees)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        content = self.objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        return None


def _body(data: bytes, body: bytes) -> bytes:
    """The same object with another body, and the head that it needs."""
    head = data[: data.index(b"\0")].rsplit(b" ", 1)[0]
    return head + b" " + str(len(body)).encode() + b"\0" + body


def _array(**changes: Any) -> Callable[[bytes], bytes]:
    def forge(data: bytes) -> bytes:
        return _body(data, json.dumps(json.loads(data[data.index(b"\0") + 1 :]) | changes).encode())

    return forge


FORGED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "metrics that are no protobuf": ("MetricRecord", lambda data: _body(data, b"\xff" * 40)),
    "an array that is no json": ("Array", lambda data: _body(data, b"{")),
    "nested beyond the stack": ("Array", lambda data: _body(data, b"[" * 200_000)),
    "an array without a shape": ("Array", _array(shape=None)),
    "a shape of texts": ("Array", _array(shape=["3"])),
    "a dtype that is a number": ("Array", _array(dtype=4)),
    "a chunk that is not there": ("Array", _array(arraychunk_ids=[7])),
    "a chunk four billion bytes of times": ("Array", _array(arraychunk_ids=[0] * 300_000)),
    "names that are no json": ("ArrayRecord", lambda data: _body(data, b"\0\0")),
    "other children": ("RecordDict", lambda data: _body(data, b'{"arrays": "me"}')),
    "no head": ("RecordDict", lambda data: b"Nothing"),
    "an unknown kind": ("ArrayChunk", lambda data: data.replace(b"ArrayChunk", b"ArrayChink")),
    "another kind": ("RecordDict", lambda data: data.replace(b"RecordDict", b"ConfigRecord")),
    "an envelope that is no protobuf": ("Message", lambda data: _body(data, b"\xff" * 9)),
}


def _asked(number: int) -> Message:
    message = Message(instruction_content(to_record(ARRAYS), Instruction("dual", 1, Phase.TRAIN)), 9, "train")
    message.metadata.__dict__["_message_id"] = hashlib.sha256(bytes([number])).hexdigest()
    return message


def _grid(link: SuperLink) -> http_grid.HttpGrid:
    grid = http_grid.HttpGrid(token="t")
    grid._client, grid._run = link, Run.create_empty(1)  # type: ignore[assignment]
    return grid


@pytest.mark.parametrize("fault", list(FORGED))
def test_a_reply_that_cannot_be_decoded_loses_its_node_alone(fault: str) -> None:
    kind, forge = FORGED[fault]
    link, asked = SuperLink(), [_asked(0), _asked(1)]
    link.push(
        Message(reply_content(2, {"x": ARRAYS["x"] + 1}), reply_to=asked[0]),
        lambda found, data: forge(data) if found == kind else data,
    )
    link.push(Message(reply_content(1, ARRAYS), reply_to=asked[1]))
    with pytest.raises(Exception):  # noqa: B017 - Flower's own, of many kinds, or far too many bytes
        replies = list(_grid(link).pull_messages(["a"]))
        assert sum(len(a.data) for r in replies for a in r.content.array_records["arrays"].values()) < 10**6
    with guarded(limit_bytes=10**6):
        replies = list(_grid(link).pull_messages(["a"]))
    verdict = judge(
        replies, [m.metadata.message_id for m in asked], lambda reply: validate_reply(reply, {"x": (3,)})
    )
    assert list(verdict.accepted) == [1] and verdict.accepted[1][1] == 1
    silent = fault == "an envelope that is no protobuf"
    assert verdict.rejected == ({"no reply": 1, "unsolicited": 1} if silent else {"error": 1})
    assert replies[0].error.code == UNREADABLE_CODE


def test_the_decoder_is_flower_s_again_afterwards() -> None:
    before = getattr(http_grid, DECODER)
    with pytest.raises(KeyError), guarded():
        assert getattr(http_grid, DECODER) is not before
        raise KeyError
    assert getattr(http_grid, DECODER) is before
