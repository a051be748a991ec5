"""Nodes whose ClientApp and trainer are real and whose way out is recorded, and what the scan says.

Beside each node a second trainer, undisturbed, does what the node is asked to do: it says what was
due to be sent, and which personal numbers there were to be leaked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supernode.runtime.run_clientapp import push_message

from fl_client.arm_trainer import ArmTrainer
from fl_client.cohort_arm import CohortArm
from fl_client.egress import REFUSALS
from fl_client.store import PersonalState
from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.engine import clipped, example_norms
from fl_core.records import Population
from fl_core.shared import from_arrays
from fl_core.wire import Instruction, Phase, read_instruction
from tests import leaking_builds as builds
from tests.fl_core.literal import LiteralModel
from tests.leak_scan import (
    Floats,
    Secrets,
    beside_the_update,
    differs_in_any_bit,
    found_in,
    projected,
    replies_in,
    sent_update,
)
from tests.tiny_runs import tiny_population, without_floor


class Transport:
    """Stands where the connection to the SuperNode is and keeps every request as bytes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.objects: list[PushObjectRequest] = []

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        self.bodies.append(request.SerializeToString())
        ids = [item.object_id for tree in request.message_object_trees for item in _flat(tree)]
        return PushAppMessagesResponse(objects_to_push=ids, session_id="s")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:
        self.bodies.append(request.SerializeToString())
        self.objects.append(request)
        return PushObjectResponse(stored=True)


def _flat(tree: Any) -> list[Any]:
    return [tree, *(below for child in tree.children for below in _flat(child))]


@dataclass
class Sent:
    """One reply: what was asked, the bytes, and what a second, undisturbed trainer says was due."""

    asked: Instruction
    transport: Transport
    users: int
    names: list[str]
    due: Floats | None
    literal: npt.NDArray[np.float64] | None
    personal: dict[str, Floats]
    metrics: dict[str, float]

    @property
    def reply(self) -> Message:
        (reply,) = replies_in(self.transport.objects)
        return reply


@dataclass
class Node:
    """A node whose ClientApp is real, and whose way out is recorded."""

    app: ClientApp
    config: RunConfig
    partition: int
    partitions: int
    second: NodeTrainer
    sent: list[Sent] = field(default_factory=list)

    def __call__(self, message: Message) -> Message:
        place = {"partition-id": self.partition, "num-partitions": self.partitions}
        context = Context(11, 9, place, RecordDict(), self.config.to_flat())
        shared, asked = read_instruction(message.content)
        arm = self.second.arm(asked.arm)
        layout, due, literal = arm.adapter.shared_layout, None, None
        personal = {"before": np.array(self._state(arm, asked).before)}
        if asked.phase is Phase.TRAIN:
            theta = from_arrays(layout, shared)
            if isinstance(arm, CohortArm):
                literal = literal_update(self.second, arm, asked.server_round, theta, personal["before"])
            due = layout.join(self.second.train(asked.arm, asked.server_round, shared)[0])
        elif asked.phase is Phase.PERSONALIZE:
            self.second.personalize(asked.arm, asked.server_round, shared)
        personal["after"] = np.array(arm.load().after)
        users = self.second.users_in(asked.arm, asked.phase, asked.server_round)
        told = {}
        if due is not None and isinstance(arm, CohortArm):  # later than the round: it fills caches in its way
            told = {"loss": builds.mean_loss(self.second, asked.arm)}
        reply, transport = self.app(message, context), Transport()
        names = list(dict(layout.shapes))
        self.sent.append(Sent(asked, transport, users, names, due, literal, personal, told))
        push_message(transport, reply, context)  # type: ignore[arg-type]
        return reply

    @staticmethod
    def _state(arm: ArmTrainer, asked: Instruction) -> PersonalState:
        return arm.load().at_start_of(max(1, asked.server_round))

    def secrets(self) -> Secrets:
        """All that this node's users would not want to see elsewhere."""
        trainer = self.second
        tensors: dict[str, Floats] = {}
        metrics = {f"{n} {name}": v for n, sent in enumerate(self.sent) for name, v in sent.metrics.items()}
        for number, sent in enumerate(self.sent):
            for name, rows in sent.personal.items():
                tensors[f"{number} {name}"] = rows
                tensors |= {f"{number} {name} of {u}": row for u, row in enumerate(rows)}
                tensors[f"{number} sum of {name}"] = rows.sum(0).astype(np.float32)
        population = trainer.cohort.population
        texts = [t for text in population.texts for t in (text.response, text.prompt)]
        return Secrets(tensors, texts + [user.user_id for user in population.users], metrics)


def literal_update(
    trainer: NodeTrainer, arm: CohortArm, server_round: int, theta: torch.Tensor, before: Floats
) -> npt.NDArray[np.float64]:
    """[D] what one local step is due to send: autograd, one example at a time; without the noise.

    -lr / L times the sum over users' records of the gradient at (theta, own adapter), clipped to C.
    """
    model, examples = LiteralModel(trainer.cohort.base, arm.adapter), arm.train_examples
    online, total = trainer.cohort.online(server_round), torch.zeros(len(theta), dtype=torch.float64)
    for place, user in enumerate(examples.user):
        if online[user]:
            model.become(theta, torch.from_numpy(before[user]), torch.ones(2))
            one = examples.take(np.array([place]))
            gradient = model.gradient("reward", trainer.cohort.texts.tokens, one, 0.1)[None, : len(theta)]
            if arm.shared_clip is not None:
                gradient = clipped(gradient, example_norms(gradient), arm.shared_clip)
            total -= gradient[0].double()
    train = trainer.config.train
    return np.asarray((train.inner_lr / train.expected_batch * total).numpy())


def diaries(seed: int = 0) -> Population:
    """A population whose texts and names cannot be there by chance."""
    plain = without_floor(tiny_population("mixed", seed))
    texts = tuple(
        replace(t, prompt=f"Question of diary {t.prompt}", response=f"Dear diary {i} my doctor {t.response}")
        for i, t in enumerate(plain.texts)
    )
    users = tuple(replace(user, user_id=f"ada-lovelace-{i}") for i, user in enumerate(plain.users))
    return replace(plain, texts=texts, users=users)


def plant(arm: ArmTrainer, seed: int) -> None:
    """Give the users personal numbers that are nobody else's, before the first round."""
    fresh = PersonalState.fresh(arm.cohort.users, arm.prior)
    own = 0.3 * np.random.default_rng([5, seed]).standard_normal(fresh.after.shape)
    arm.store.save(replace(fresh, after=(fresh.after + own).astype(np.float32)))


def findings(nodes: list[Node], exact: bool = True) -> dict[str, set[str]]:
    """All that the scan finds in everything that the nodes sent, by the kind of search.

    Without ``exact`` nobody knows the noise that was drawn, as with a real device's: what is due is
    then the literal update without noise.
    """
    found: dict[str, set[str]] = {"bytes": set(), "beside": set(), "bits": set(), "numbers": set()}
    for node in nodes:
        bodies = [body for sent in node.sent for body in sent.transport.bodies]
        found["bytes"] |= found_in(bodies, node.secrets())
        for sent in node.sent:
            reply = sent.reply
            found["beside"] |= beside_the_update(reply, sent.names, sent.users, REFUSALS)
            if reply.has_error() or "arrays" not in reply.content:
                continue
            update = sent_update(reply, sent.names)
            due = np.zeros_like(update) if sent.due is None else sent.due
            if exact and differs_in_any_bit(update, due):
                found["bits"].add("another update than is due")
            for reference in (due if exact or sent.due is None else None, sent.literal):
                if reference is not None:
                    found["numbers"] |= set(projected(update, reference, sent.personal))
    return found
