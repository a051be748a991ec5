"""A grid in this process: the slow, obvious stand-in for Flower's, for tests of the server.

A node is a function from an instruction to a reply (or to several, or to None for silence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_core.config import AdapterSpec, FederationConfig, RunConfig
from fl_core.wire import Arrays, reply_content
from strategies.sampling import Timer

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1

Node = Callable[[Message], Message | Sequence[Message] | None]


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    seconds: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def timer(self) -> Timer:
        return Timer(lambda: self.seconds, self.sleep)


@dataclass
class FakeGrid(Grid):
    """``nodes`` by id, registered in the order of the mapping; ``shuffle`` permutes replies."""

    nodes: Mapping[int, Node]
    shuffle: int | None = None
    pushed: list[Message] = field(default_factory=list)
    waiting: list[Message] = field(default_factory=list)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.nodes, reverse=True)

    def get_nodes(self) -> Iterable[NodeInfo]:
        place = {node: f"2030-01-01T00:00:{index:02d}" for index, node in enumerate(self.nodes)}
        return [NodeInfo(node_id=node, registered_at=place[node]) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed.append(message)
            ids.append(message.metadata.message_id)
            answer = self.nodes[message.metadata.dst_node_id](message)
            self.waiting += [answer] if isinstance(answer, Message) else list(answer or [])
        if self.shuffle is not None:
            order = np.random.default_rng(self.shuffle).permutation(len(self.waiting))
            self.waiting = [self.waiting[i] for i in order]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = set(message_ids)
        found = [m for m in self.waiting if m.metadata.reply_to_message_id in ids]
        self.waiting = [m for m in self.waiting if m.metadata.reply_to_message_id not in ids]
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(list(messages)))


def answering(total: Arrays, count: int) -> Node:
    """A node that always replies with the same sum and count."""
    return lambda message: Message(reply_content(count, total), reply_to=message)


def raw_reply(message: Message, arrays: Mapping[str, Any], count: Any = 1) -> Message:
    """A reply that skips our own checks on the sending side."""
    record = ArrayRecord({k: v if isinstance(v, Array) else Array(np.asarray(v)) for k, v in arrays.items()})
    return Message(
        RecordDict({"arrays": record, "metrics": MetricRecord({"count": count})}), reply_to=message
    )


LORA = AdapterSpec(kind="lora", targets="q_proj")
B_ONLY = AdapterSpec(kind="b_only", targets="q_proj")


def config_of(method: str = "components", **federation: Any) -> RunConfig:
    """A valid configuration of ``method`` with plain averaging, unless told otherwise."""
    leaks = method == "fdlora-as-printed"
    server = "nesterov" if method.startswith("fdlora") else "sgd"
    settings: dict[str, Any] = {
        "server": server,
        "server_lr": 1.0,
        "rounds": 3,
        "head_precision": 0.0,
        "leak_personal_weights": leaks,
    } | federation
    kinds: dict[str, dict[str, Any]] = {"components": {}, "ffa": {"shared": B_ONLY, "personal": B_ONLY}}
    adapters = kinds.get(method, {"shared": LORA, "personal": LORA})
    changes = {"method": method, "federation": replace_model(FederationConfig(), settings), **adapters}
    return RunConfig(users=20).model_copy(update=changes)


def replace_model(model: FederationConfig, settings: Mapping[str, Any]) -> FederationConfig:
    """A validated copy with some fields changed."""
    return FederationConfig(**{**model.model_dump(), **settings})
