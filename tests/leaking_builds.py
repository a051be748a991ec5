"""Builds of the ClientApp that leak, made so that the scan of what leaves a node can be tested.

Each is the real app's handlers behind a mod that leaks, without the gate of ``fl_client.egress``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp

from fl_client import app as module
from fl_client.cohort_arm import CohortArm, example_margins
from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.wire import Arrays, from_record, read_instruction, to_record

Leak = Callable[[Message, NodeTrainer, str], Message]


def trainer_of(context: Context) -> NodeTrainer:
    """The app's own trainer of a node."""
    config = RunConfig.from_flat(context.run_config)
    return module._trainer(module._place(context, config), config)


def with_mods(*mods: object) -> ClientApp:
    """The real handlers behind these mods."""
    made = ClientApp(mods=list(mods))  # type: ignore[arg-type]
    made.train()(module.train)
    made.train("personalize")(module.personalize)
    made.train("upload")(module.upload)
    return made


def leaking(leak: Leak) -> ClientApp:
    """The real handlers, whose replies to ``train`` pass through ``leak``, and no gate."""
    return with_mods(mod_of(leak))


def mod_of(leak: Leak) -> Callable[[Message, Context, Callable[[Message, Context], Message]], Message]:
    def mod(message: Message, context: Context, call: Callable[[Message, Context], Message]) -> Message:
        reply = call(message, context)
        if message.metadata.message_type != "train" or not reply.has_content():
            return reply
        return leak(reply, trainer_of(context), read_instruction(message.content)[1].arm)

    return mod


def _changed(reply: Message, change: Callable[[Arrays], None]) -> Message:
    arrays = from_record(reply.content.array_records["arrays"])
    change(arrays)
    reply.content["arrays"] = to_record(arrays)
    return reply


def added(share: float) -> Leak:
    """The sum of the personal adapters, times ``share``, hidden in the update: linear."""

    def leak(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
        layout = trainer.arm(arm).adapter.shared_layout
        own = layout.split(trainer.arm(arm).load().before.sum(0).astype(np.float32))

        def change(arrays: Arrays) -> None:
            for name in arrays:
                arrays[name] += np.float32(share) * own[name]

        return _changed(reply, change)

    return leak


def slipped(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """One user's reward head added to another array, from its fifth number on."""
    own = trainer.arm(arm).load().before[0][-40:-1]

    def change(arrays: Arrays) -> None:
        name = max(arrays, key=lambda key: arrays[key].size)
        arrays[name].reshape(-1)[5 : 5 + own.size] += own[: arrays[name].size - 5]

    return _changed(reply, change)


def mean_loss(trainer: NodeTrainer, arm: str) -> float:
    """The hosted users' mean training loss under their adapters of before the round."""
    made = trainer.arm(arm)
    assert isinstance(made, CohortArm)
    members = made._members(made.adapter.initial_shared(), np.array(made.load().before))
    margins = example_margins(made.engine, made.train_examples, members)
    return float(torch.nn.functional.softplus(-margins).mean())


def metric(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """The users' mean loss beside the count."""
    count = reply.content.metric_records["metrics"]["count"]
    reply.content["metrics"] = MetricRecord({"count": count, "loss": mean_loss(trainer, arm)})
    return reply


def counted(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """The number of records in place of the number of users."""
    reply.content["metrics"] = MetricRecord({"count": 1000 + len(trainer.arm(arm).train_examples)})
    return reply


def low_bits(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """The number of records in the last bit of sixteen numbers of the update."""
    records = len(trainer.arm(arm).train_examples)

    def change(arrays: Arrays) -> None:
        name = max(arrays, key=lambda key: arrays[key].size)
        bits = arrays[name].reshape(-1)[:16].view(np.uint32)
        bits &= np.uint32(0xFFFFFFFE)
        bits |= np.array([records >> i & 1 for i in range(16)], dtype=np.uint32)

    return _changed(reply, change)


def extra_array(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """The personal adapters as half-precision numbers under a key of their own."""
    own = trainer.arm(arm).load().before.astype(np.float16)
    record = ArrayRecord(dict(reply.content.array_records["arrays"]))
    record["moments"] = Array(own)
    reply.content["arrays"] = record
    return reply


def quantised(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """The personal adapters in eight bits and base64, in a record of configuration."""
    own = trainer.arm(arm).load().before[0]
    coded = np.round(own / np.abs(own).max() * 127).astype(np.int8).tobytes()
    reply.content["debug"] = ConfigRecord({"state": base64.b64encode(b"v1" + coded).decode()})
    return reply


def padded(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """Feedback in the spaces at the end of an npy header, which readers skip: tab for 1, space for 0."""
    record = ArrayRecord(dict(reply.content.array_records["arrays"]))
    name = sorted(record)[0]
    data, text = record[name].data, trainer.cohort.population.texts[0].response.encode()[:8]
    end = 10 + int.from_bytes(data[8:10], "little")
    bits = "".join(f"{byte:08b}" for byte in text)
    head = data[10:end].rstrip() + bits.replace("0", " ").replace("1", "\t").encode() + b"\n"
    forged = data[:8] + len(head).to_bytes(2, "little") + head + data[end:]
    record[name] = Array("float32", record[name].shape, record[name].stype, forged)
    reply.content["arrays"] = record
    return reply


def told(reply: Message, trainer: NodeTrainer, arm: str) -> Message:
    """What a user wrote, in the text of an error."""
    text = trainer.cohort.population.texts[int(trainer.arm(arm).train_examples.chosen[0])].response
    failed = Message(Error(2, f"ValueError: cannot parse {text!r}"), reply_to=reply)
    failed.__dict__["_metadata"] = reply.metadata
    return failed
