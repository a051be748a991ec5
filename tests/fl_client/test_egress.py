"""What leaves a node: the gate, and a scan of the bytes of whole rounds that trusts no gate.

The nodes are real ClientApps with real trainers under the real server; what they hand to the
transport is recorded by Flower's own code for pushing a message.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fl_client import app as module
from fl_client.egress import (
    REFUSALS,
    SETTINGS,
    Allowance,
    Egress,
    ForbiddenUploadError,
    Refusal,
    RefusedToSendError,
    allowance,
    refusal,
    released,
)
from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.errors import ConfigurationError, DataError, ModelError, WireError
from fl_core.records import Split
from fl_core.shared import Arrays, initial_shared
from fl_core.wire import Instruction, Phase, instruction_content, reply_content, to_record
from fl_server.rounds import run_arms
from strategies.exchange import instruct
from tests import leaking_builds as builds
from tests.fake_grid import Clock, FakeGrid, config_of
from tests.leak_scan import SHORTEST, Secrets, found_in, needles, projected, sent_update, span_p, window_p
from tests.recorded_nodes import Node, diaries, findings, plant
from tests.tiny_runs import tiny_config

Floats = npt.NDArray[np.float32]

# --- The gate ----------------------------------------------------------------------------------

SHAPES = {"head.common": (3,), "trunk.0.q_proj.B": (2, 2)}
GOOD: Arrays = {name: np.arange(1, 1 + np.prod(s), dtype=np.float32).reshape(s) for name, s in SHAPES.items()}
SECRET = "my doctor said that"
TRAINING = Allowance(SHAPES, 4)


def _asked(phase: Phase = Phase.TRAIN) -> Message:
    content = instruction_content(to_record(GOOD), Instruction("dual", 1, phase))
    message = Message(content, 9, phase.value)
    message.metadata.__dict__["_message_id"] = "m0"
    return message


def _gated(reply: object, allowed: Allowance = TRAINING) -> Message:
    seen: list[Exception] = []
    gate = Egress(lambda message, context: allowed, lambda context, error: seen.append(error))
    context = Context(1, 1, {}, RecordDict(), {})
    result = gate(_asked(), context, lambda message, context: reply)  # type: ignore[arg-type, return-value]
    assert bool(seen) == (result.has_error() and result.error.code == Refusal.EGRESS.code)
    return result


def test_the_shared_update_and_the_public_count_pass_unchanged() -> None:
    reply = Message(reply_content(4, GOOD), reply_to=_asked())
    passed = _gated(reply)
    assert passed.content.object_id == reply.content.object_id
    assert (
        _gated(Message(reply_content(0), reply_to=_asked())).content.metric_records["metrics"]["count"] == 0
    )
    alone = Message(reply_content(4), reply_to=_asked())
    assert _gated(alone, Allowance(None, 4)).content.object_id == alone.content.object_id


def _record(**arrays: Any) -> RecordDict:
    record = ArrayRecord({k: v if isinstance(v, Array) else Array(v) for k, v in (GOOD | arrays).items()})
    return RecordDict({"arrays": record, "metrics": MetricRecord({"count": 4})})


def _with(**records: Any) -> RecordDict:
    content = reply_content(4, GOOD)
    for name, record in records.items():
        content[name] = record
    return content


NAN = np.array([1, np.nan, 2], dtype=np.float32)
BAD: dict[str, RecordDict | Error] = {
    "an array more": _record(extra=np.ones(3, np.float32)),
    "a shape": _record(**{"head.common": np.ones(4, np.float32)}),
    "float64": _record(**{"head.common": np.ones(3)}),
    "nan": _record(**{"head.common": NAN}),
    "infinity": _record(**{"head.common": np.full(3, np.inf, np.float32)}),
    "a forged header": _record(
        **{"head.common": Array("float32", (3,), "numpy.ndarray", Array(GOOD["head.common"]).data + b"mine")}
    ),
    "a metric more": _with(metrics=MetricRecord({"count": 4, "loss": 0.5})),
    "a list of metrics": _with(metrics=MetricRecord({"count": [4, 5]})),
    "a real count": _with(metrics=MetricRecord({"count": 4.0})),
    "another count": _with(metrics=MetricRecord({"count": 3})),
    "a record more": _with(debug=ConfigRecord({"text": SECRET})),
    "no count": RecordDict({"arrays": to_record(GOOD)}),
    "arrays missing": reply_content(4),
    "a free text": Error(2, SECRET),
    "a free text with our code": Error(Refusal.FAILED.code, SECRET),
    "a fixed text with another code": Error(7, Refusal.FAILED.sentence),
    "no text": Error(Refusal.FAILED.code),
    "a setting's value": Error(
        Refusal.CONFIGURATION.code, f"{Refusal.CONFIGURATION.sentence}: path={SECRET}"
    ),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_whatever_the_schema_does_not_name_is_refused(fault: str) -> None:
    passed = _gated(Message(BAD[fault], reply_to=_asked()))  # type: ignore[call-overload]
    assert passed.error == Error(*Refusal.EGRESS.value)
    assert SECRET.encode() not in passed.deflate()


def test_arrays_do_not_leave_where_a_count_alone_may() -> None:
    passed = _gated(Message(reply_content(4, GOOD), reply_to=_asked()), Allowance(None, 4))
    assert passed.error == Error(*Refusal.EGRESS.value)


def test_what_is_no_message_is_refused() -> None:
    assert _gated(None).error == Error(*Refusal.EGRESS.value)
    assert _gated(Message(RecordDict(), reply_to=_asked())).error == Error(*Refusal.EGRESS.value)


def test_the_envelope_is_that_of_the_instruction() -> None:
    """Nothing can be written on the outside: group, type, sender and addressee are the instruction's."""
    reply = Message(reply_content(4, GOOD), reply_to=_asked())
    reply.metadata.group_id = SECRET
    reply.metadata.message_type = "train.secret"
    reply.metadata.__dict__["_message_id"] = SECRET
    reply.metadata.__dict__["_reply_to_message_id"] = SECRET
    passed = _gated(reply)
    assert passed.metadata.group_id == "" and passed.metadata.reply_to_message_id == "m0"
    assert passed.metadata.message_type == "train" and SECRET not in repr(passed.metadata)
    assert SECRET.encode() not in passed.deflate()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError(SECRET), Refusal.FAILED),
        (KeyError(SECRET), Refusal.FAILED),
        (MemoryError(SECRET), Refusal.FAILED),
        (ModelError(SECRET), Refusal.MODEL),
        (WireError(SECRET), Refusal.INSTRUCTION),
        (ConfigurationError(SECRET), Refusal.CONFIGURATION),
        (ConfigurationError(f"path={SECRET!r}: is no file"), Refusal.CONFIGURATION),
        (ForbiddenUploadError(SECRET), Refusal.FORBIDDEN),
        (RefusedToSendError(SECRET), Refusal.EGRESS),
    ],
)
def test_an_error_is_told_by_its_class_alone(error: Exception, kind: Refusal) -> None:
    told = refusal(error)
    assert told.code == kind.code and (told.code, told.reason) in REFUSALS
    assert SECRET not in str(told.reason)
    assert released(Message(told, reply_to=_asked()), _asked(), lambda: Allowance(None, 0)).error == told


def test_the_list_of_errors_is_short_and_holds_names_alone() -> None:
    assert len(REFUSALS) == len(Refusal) + len(SETTINGS) < 150
    assert len({kind.code for kind in Refusal}) == len(Refusal)
    assert refusal(ConfigurationError("privacy.clip=-1: must be above 0")).reason.endswith(": privacy.clip")
    assert refusal(ConfigurationError("ada=1: must be")).reason == Refusal.CONFIGURATION.sentence


@pytest.mark.parametrize("method", ["components", "fdlora", "fdlora-as-printed"])
@pytest.mark.parametrize("flag", [False, True])
def test_personal_adapters_may_leave_under_one_method_and_its_flag_alone(method: str, flag: bool) -> None:
    config = config_of(method, leak_personal_weights=flag)
    asked = Instruction("dual", 0, Phase.UPLOAD)
    if method == "fdlora-as-printed" and flag:
        assert allowance(config, asked, SHAPES, 4) == Allowance(SHAPES, 4)
        return
    with pytest.raises(ForbiddenUploadError):
        allowance(config, asked, SHAPES, 4)
    assert allowance(config, replace(asked, phase=Phase.PERSONALIZE), SHAPES, 4).shapes is None


def test_every_handler_of_the_app_stands_behind_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that somebody adds and that leaks everything at once."""
    assert any(isinstance(mod, Egress) for mod in module.app._mods)
    monkeypatch.setattr(module.app, "_registered_funcs", dict(module.app._registered_funcs))

    @module.app.train("careless")
    def careless(message: Message, context: Context) -> Message:
        return Message(RecordDict({"all": ConfigRecord({"text": SECRET})}), reply_to=message)

    message = Message(RecordDict(), 9, "train.careless")
    message.metadata.__dict__["_message_id"] = "m0"
    reply = module.app(message, Context(1, 1, {}, RecordDict(), RunConfig().to_flat()))
    assert reply.has_error() and SECRET.encode() not in reply.deflate()


# --- Whole rounds ------------------------------------------------------------------------------

NODES = 3
LORA: dict[str, Any] = {
    f"{side}__{key}": value
    for side in ("shared", "personal")
    for key, value in {"kind": "lora", "rank": 2, "targets": "q_proj", "layers": "top:1"}.items()
}
FDLORA: dict[str, Any] = {
    **LORA,
    "method": "fdlora",
    "federation__server": "nesterov",
    "train__pooling": "last-mean",
    "train__inner_lr": 0.1,
}
PRINTED = FDLORA | {"method": "fdlora-as-printed", "federation__leak_personal_weights": True}
ROUNDS = {"federation__rounds": 2, "train__text_shards": 1, "train__final_steps": 2}


Federation = Callable[..., list[Node]]


@pytest.fixture
def federation(tiny_model_folder: Path, tmp_path: Path) -> Federation:
    """Run a whole federation, or one node's first round, with a build of the app; returns the nodes."""
    population = tmp_path / "population"
    diaries().save(population)

    def run(app: ClientApp, arm: str = "dual", whole: bool = True, **changes: Any) -> list[Node]:
        settings = {**ROUNDS, **changes, "arms": arm}
        config = tiny_config(tiny_model_folder, **settings).model_copy(
            update={"population": str(population), "out": str(tmp_path / "run")}
        )
        module._TRAINERS.clear()
        nodes = []
        for place in range(NODES if whole else 1):
            second = NodeTrainer(config, population, tmp_path / "second", place, NODES)
            first = NodeTrainer(config, population, tmp_path / "run", place, NODES)
            for trainer in (first, second):
                plant(trainer.arm(arm), seed=place)
            nodes.append(Node(app, config, place, NODES, second))
        grid = FakeGrid({10 + i: node for i, node in enumerate(nodes)})
        if whole:
            run_arms(config, grid, tmp_path / "run", timer=Clock().timer())
        else:
            asked = Instruction(arm, 1, Phase.TRAIN)
            grid.push_messages(instruct(asked, to_record(initial_shared(config, arm)), [10], 9.0))
        module._TRAINERS.clear()
        return nodes

    return run


NOTHING: Mapping[str, set[str]] = {"bytes": set(), "beside": set(), "bits": set(), "numbers": set()}


@pytest.mark.parametrize("arm", ["dual", "dual_dp"])
@pytest.mark.parametrize("method", [{}, FDLORA], ids=["components", "fdlora"])
def test_the_app_sends_the_update_and_nothing_personal(
    federation: Federation, arm: str, method: dict[str, Any]
) -> None:
    nodes = federation(module.app, arm, **method)
    assert [sent.asked.phase for node in nodes for sent in node.sent] == [
        Phase.TRAIN, Phase.TRAIN, Phase.PERSONALIZE,
    ] * NODES  # fmt: skip
    assert findings(nodes) == NOTHING
    if method:  # the literal reference is met up to rounding, or up to the noise
        for node in nodes:
            for sent in node.sent[:2]:
                left = np.linalg.norm(sent_update(sent.reply, sent.names) - sent.literal)
                assert (left < 1e-4 * np.linalg.norm(sent.literal)) == (arm == "dual")


def test_the_method_that_leaks_by_design_is_found_and_passes_the_gate(federation: Federation) -> None:
    """FDLoRA as printed: the sum of a node's personal adapters, number by number, before round 1."""
    nodes = federation(module.app, **PRINTED)
    assert [sent.asked.phase for sent in nodes[0].sent][:2] == [Phase.UPLOAD, Phase.TRAIN]
    found = findings(nodes)
    assert {"span of before", "0 sum of before[0:4]"} <= found["numbers"] | found["bytes"]
    assert not any(sent.reply.has_error() for node in nodes for sent in node.sent)
    rounds = [replace(node, sent=node.sent[1:]) for node in nodes]  # without it, a method like others
    assert findings(rounds)["bits"] == set()


BUILDS: dict[str, tuple[builds.Leak, set[str]]] = {
    "personal numbers added, a thousandth": (builds.added(1e-3), {"bits", "numbers"}),
    "personal numbers added somewhere else": (builds.slipped, {"bits", "numbers"}),
    "a loss": (builds.metric, {"beside", "bytes"}),
    "a number of records": (builds.counted, {"beside"}),
    "a number of records in low bits": (builds.low_bits, {"bits"}),
    "a further array": (builds.extra_array, {"beside", "bytes"}),
    "eight bits in base64": (builds.quantised, {"beside", "bytes"}),
    "an npy header": (builds.padded, {"beside"}),
    "feedback in an error": (builds.told, {"beside", "bytes"}),
}
HIDDEN = (
    "personal numbers added, a thousandth",
    "personal numbers added somewhere else",
    "a number of records in low bits",
)
"""What has the form of an update: no gate can tell it from one."""


@pytest.mark.parametrize("name", list(BUILDS))
def test_the_scan_finds_a_leaking_build(federation: Federation, name: str) -> None:
    leak, kinds = BUILDS[name]
    found = findings(federation(builds.leaking(leak), whole=False, **FDLORA))
    assert {kind for kind, what in found.items() if what} == kinds, found


@pytest.mark.parametrize("name", [name for name in BUILDS if name not in HIDDEN])
def test_the_gate_refuses_a_leaking_build(federation: Federation, name: str) -> None:
    gate = Egress(module._allowed, module._log_locally)
    app = builds.with_mods(gate, builds.mod_of(BUILDS[name][0]))
    nodes = federation(app, whole=False, **FDLORA)
    assert findings(nodes) == NOTHING
    replies = [sent.reply for node in nodes for sent in node.sent]
    assert replies and all(reply.error == Error(*Refusal.EGRESS.value) for reply in replies)


@pytest.mark.parametrize("leak", [builds.added(1.0), builds.slipped], ids=["added", "slipped"])
def test_a_leak_under_noise_that_nobody_knows_is_found(federation: Federation, leak: builds.Leak) -> None:
    nodes = federation(builds.leaking(leak), "dual_dp", whole=False, **FDLORA)
    assert findings(nodes, exact=False)["numbers"]


# --- Users who have nothing to say -------------------------------------------------------------


@pytest.mark.parametrize("arm", ["dual", "dual_dp"])
@pytest.mark.parametrize("method", [{}, FDLORA], ids=["components", "fdlora"])
@pytest.mark.parametrize("leaks", [False, True])
def test_users_without_records_send_noise_whatever_their_adapters_hold(
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arm: str,
    method: dict[str, Any],
    leaks: bool,
) -> None:
    """Needs no second computation: without records nothing is due, and the adapters are random marks.

    So it also sees a leak inside of the trainer, here one in ``ArmTrainer.reply``.
    """
    population = diaries()
    records = replace(population.records, split=np.maximum(population.records.split, Split.HOLDBACK))
    replace(population, records=records).save(tmp_path / "population")
    config = tiny_config(tiny_model_folder, **{**ROUNDS, **method, "arms": arm})
    trainer = NodeTrainer(config, tmp_path / "population", tmp_path / "run", 0, NODES)
    made = trainer.arm(arm)
    plant(made, seed=0)
    before, honest = np.array(made.load().after), made.reply
    if leaks:
        own = torch.from_numpy(before.ravel()[: made.adapter.shared_layout.size].copy())
        pad = made.adapter.shared_layout.size - len(own)
        monkeypatch.setattr(made, "reply", lambda s: honest(s + torch.nn.functional.pad(own, (0, pad))))
    shared = made.adapter.initial_shared()
    sums, _ = trainer.train(arm, 1, made.adapter.shared_layout.split(shared.numpy()))
    sent = made.adapter.shared_layout.join(sums)
    assert np.any(sent) == (leaks or arm == "dual_dp")
    found = projected(sent, np.zeros_like(sent), {"before": before, "after": np.array(made.load().after)})
    assert bool(found) == leaks, found


# --- The statistics themselves -----------------------------------------------------------------


def test_every_spelling_of_a_secret_is_found_and_noise_is_none() -> None:
    """Each needle alone within a megabyte of noise, and within compressed streams."""
    rng = np.random.default_rng(0)
    tensors = {"own": rng.standard_normal(40).astype(np.float32)}
    secrets = Secrets(tensors, ["Dear diary, my doctor"], {"loss": 0.6931471805599453})
    noise = rng.bytes(2**20)
    assert found_in([noise], secrets) == set()
    spelled = [(name, n) for name, n in needles(secrets) if len(n) >= SHORTEST and len(set(n)) > 3]
    assert {"own as bfloat16", "own as int8", "own as float16 in base64"} <= {name for name, _ in spelled}
    together = noise[:5000] + b"|".join(needle for _, needle in spelled) + noise[:5000]
    assert found_in([together], secrets) == {name for name, _ in spelled}
    diary = b"notes: " + secrets.texts[0].encode("utf-16-le")
    for packed in (zlib.compress(diary), gzip.compress(diary)):
        assert packed not in diary and found_in([noise[:999] + packed], secrets)
    for shift in range(3):  # base64 has three alignments
        coded = base64.b64encode(b"x" * shift + secrets.texts[0].encode())
        assert found_in([noise[:999] + coded], secrets)


def test_the_chance_of_a_false_alarm_is_as_stated() -> None:
    """Noise against fixed tensors: p-values below 5% come in 5% of draws (span), or fewer (windows)."""
    rng = np.random.default_rng(0)
    rows, tensor = rng.standard_normal((4, 90)), rng.standard_normal(20)
    span = np.array([span_p(rng.standard_normal(90), rows) for _ in range(2000)])
    window = np.array([window_p(rng.standard_normal(90), tensor) for _ in range(2000)])
    assert abs(np.mean(span < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert abs(np.mean(span < 0.5) - 0.5) < 4 * np.sqrt(0.25 / 2000)
    assert 0.005 < np.mean(window < 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_what_is_found_at_which_size() -> None:
    """A linear share of four users' numbers in noise of equal length: found from a third on, of 1,000."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((4, 1000))
    noise = rng.standard_normal(1000)
    hidden = rows.sum(0) / np.linalg.norm(rows.sum(0)) * np.linalg.norm(noise)
    assert span_p(noise + 0.33 * hidden, rows) < 1e-8 < 1e-3 < span_p(noise, rows)
    assert window_p(np.r_[noise[:300], noise[300:] + 0.33 * hidden[300:]], hidden[300:]) < 1e-8
