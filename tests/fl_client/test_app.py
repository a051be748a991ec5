"""The node component: parses, calls, replies, and lets no private text out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

from fl_client import app as module
from fl_client.egress import Refusal
from fl_core.base_model import embedded_folder
from fl_core.config import RunConfig, Scalar
from fl_core.errors import ConfigurationError, DataError, ModelError
from fl_core.wire import (
    Arrays,
    Instruction,
    Phase,
    instruction_content,
    to_record,
    validate_count,
    validate_reply,
)
from tests.fake_grid import config_of

SECRET = "my doctor said that"
SHARED: Arrays = {"x": np.arange(3, dtype=np.float32)}


class _Trainer:
    """Records its calls; fails with ``error`` where one is set."""

    def __init__(self, place: module.Place, error: Exception | None = None, users: int = 4) -> None:
        self.place, self.error, self.users = place, error, users
        self.calls: list[tuple[Any, ...]] = []

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error

    def train(self, arm: str, server_round: int, shared: Arrays) -> tuple[Arrays, int]:
        self._called("train", arm, server_round)
        return {name: 2 * value for name, value in shared.items()}, self.users

    def personalize(self, arm: str, server_round: int, shared: Arrays) -> int:
        self._called("personalize", arm, server_round)
        return 6

    def shared_shapes(self, arm: str) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in SHARED.items()}

    def users_in(self, arm: str, phase: Phase, server_round: int) -> int:
        return self.users if phase is Phase.TRAIN else 6

    def upload_personal(self, arm: str, server_round: int) -> tuple[Arrays, int]:
        self._called("upload", arm, server_round)
        return SHARED, 6


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Trainer]]:
    """Trainers that the app made; their behaviour is set through ``_Trainer`` attributes."""
    trainers: list[_Trainer] = []

    def new(place: module.Place, config: RunConfig) -> _Trainer:
        trainers.append(_Trainer(place))
        return trainers[-1]

    monkeypatch.setattr(module, "_new_trainer", new)
    module._TRAINERS.clear()
    yield trainers
    module._TRAINERS.clear()


def _context(
    out: Path, partition: int = 1, run_id: int = 3, config: dict[str, Scalar] | None = None
) -> Context:
    flat = {**(config or RunConfig().to_flat()), "out": str(out)}
    return Context(run_id, 9, {"partition-id": partition, "num-partitions": 12}, RecordDict(), flat)


def _asked(phase: Phase, server_round: int = 2) -> Message:
    content = instruction_content(to_record(SHARED), Instruction("dual", server_round, phase))
    message = Message(content, 9, phase.value)
    message.metadata.__dict__["_message_id"] = "m0"
    return message


def test_train_replies_with_sum_and_count_through_flower_s_dispatch(
    made: list[_Trainer], tmp_path: Path
) -> None:
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    total, count = validate_reply(reply, {"x": (3,)})
    assert count == 4 and total["x"].tolist() == [0.0, 2.0, 4.0]
    assert made[0].calls == [("train", "dual", 2)]
    assert made[0].place == module.Place(3, 1, 12, tmp_path)


def test_a_node_without_users_this_round_sends_no_arrays(made: list[_Trainer], tmp_path: Path) -> None:
    module.app(_asked(Phase.TRAIN), _context(tmp_path))
    made[0].users = 0
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert set(reply.content) == {"metrics"} and validate_count(reply) == 0


def test_personalize_replies_with_a_count_alone(made: list[_Trainer], tmp_path: Path) -> None:
    reply = module.app(_asked(Phase.PERSONALIZE, 9), _context(tmp_path))
    assert validate_count(reply) == 6 and set(reply.content) == {"metrics"}
    assert made[0].calls == [("personalize", "dual", 9)]


def test_upload_is_refused_but_for_the_method_that_leaks(made: list[_Trainer], tmp_path: Path) -> None:
    reply = module.app(_asked(Phase.UPLOAD, 0), _context(tmp_path))
    assert reply.error == Error(*Refusal.FORBIDDEN.value)
    assert made[0].calls == []
    leaking = config_of("fdlora-as-printed").to_flat()
    reply = module.app(_asked(Phase.UPLOAD, 0), _context(tmp_path, config=leaking))
    assert validate_reply(reply, {"x": (3,)})[1] == 6


@pytest.mark.parametrize(
    "error", [DataError(SECRET), ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET)]
)
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.PERSONALIZE])
def test_no_text_of_an_error_leaves_the_node_but_all_stays_on_it(
    made: list[_Trainer], tmp_path: Path, error: Exception, phase: Phase
) -> None:
    module.app(_asked(Phase.TRAIN), _context(tmp_path))
    made[0].error = error
    reply = module.app(_asked(phase), _context(tmp_path))
    assert reply.error == Error(*Refusal.FAILED.value)
    assert SECRET.encode() not in reply.deflate()
    log = (tmp_path / "logs" / "node-1.log").read_text()
    assert SECRET in log and "Traceback" in log


def test_errors_of_settings_name_the_setting_alone(made: list[_Trainer], tmp_path: Path) -> None:
    module.app(_asked(Phase.TRAIN), _context(tmp_path))
    made[0].error = ConfigurationError(f"shared.layers={SECRET!r}: the model has 6")
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert reply.error.reason == f"{Refusal.CONFIGURATION.sentence}: shared.layers"
    flat = {**RunConfig().to_flat(), "privacy.clip": SECRET}
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path, config=flat))
    assert reply.error.reason == f"{Refusal.CONFIGURATION.sentence}: privacy.clip"
    assert SECRET.encode() not in reply.deflate()


def test_a_path_on_the_device_stays_there(
    made: list[_Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of a real ModelError quotes the folders in which a model was looked for."""
    monkeypatch.setenv("DUET_MODEL", "/home/ada/model")
    with pytest.raises(ModelError, match="/home/ada/model") as caught:
        embedded_folder()
    module.app(_asked(Phase.TRAIN), _context(tmp_path))
    made[0].error = caught.value
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert reply.error == Error(*Refusal.MODEL.value) and b"ada" not in reply.deflate()


def _forms(good: RecordDict) -> dict[str, RecordDict]:
    """Contents of instructions, each wrong in one way."""
    arrays, config = good.array_records["arrays"], good.config_records["instruction"]
    fields = dict(config)
    wrong = {
        "phase unknown": {"phase": "train.steal"},
        "phase is another's": {"phase": "train.personalize"},
        "arm is a number": {"arm": 3},
        "arm unknown": {"arm": "everything"},
        "round is true": {"round": True},
        "round is text": {"round": "2"},
        "round is a list": {"round": [1]},
        "round is negative": {"round": -1},
        "one field more": {"also": "this"},
    }
    cut = Array("float32", (3,), "numpy.ndarray", arrays["x"].data[:-5])
    forged = {
        "truncated": cut,
        "pickle": Array("float32", (3,), "pickle", arrays["x"].data),
        "huge": Array("float32", (2**40,), "numpy.ndarray", arrays["x"].data),
        "float64": Array(np.zeros(3)),
        "nan": Array(np.full(3, np.nan, np.float32)),
    }
    found = {
        "empty": RecordDict(),
        "no arrays": RecordDict({"instruction": config}),
        "more": RecordDict({"arrays": arrays, "instruction": config, "more": config}),
        "metric record": RecordDict({"arrays": arrays, "instruction": MetricRecord({"round": 1})}),
        "swapped": RecordDict({"arrays": config, "instruction": arrays}),
        "no fields": RecordDict({"arrays": arrays, "instruction": ConfigRecord()}),
    }
    for name, change in wrong.items():
        found[name] = RecordDict({"arrays": arrays, "instruction": ConfigRecord(fields | change)})
    for name, array in forged.items():
        found[name] = RecordDict({"arrays": ArrayRecord({"x": array}), "instruction": config})
    return found


GOOD = instruction_content(to_record(SHARED), Instruction("dual", 2, Phase.TRAIN))


@pytest.mark.parametrize("form", list(_forms(GOOD)))
def test_a_malformed_instruction_gets_a_fixed_error_reply(
    made: list[_Trainer], tmp_path: Path, form: str
) -> None:
    message = Message(_forms(GOOD)[form], 9, "train")
    message.metadata.__dict__["_message_id"] = "m0"
    reply = module.app(message, _context(tmp_path))
    assert reply.error == Error(*Refusal.INSTRUCTION.value)
    assert not any(trainer.calls for trainer in made)


def test_a_message_whose_type_and_phase_differ_uploads_nothing(made: list[_Trainer], tmp_path: Path) -> None:
    """Personal adapters asked for under the name of a round."""
    message = Message(GOOD, 9, Phase.UPLOAD.value)
    message.metadata.__dict__["_message_id"] = "m0"
    leaking = config_of("fdlora-as-printed").to_flat()
    for config in (None, leaking):
        reply = module.app(message, _context(tmp_path, config=config))
        assert reply.error == Error(*Refusal.INSTRUCTION.value)
    assert not any(trainer.calls for trainer in made)


def test_trainers_outlive_messages_but_not_runs_and_not_the_limit(
    made: list[_Trainer], tmp_path: Path
) -> None:
    for _ in range(2):
        module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert len(made) == 1
    for partition in range(12):
        module.app(_asked(Phase.TRAIN), _context(tmp_path, partition))
    assert len(module._TRAINERS) == module.TRAINERS_LIMIT
    module.app(_asked(Phase.TRAIN), _context(tmp_path, run_id=4))
    assert [place.run_id for place in module._TRAINERS] == [4]


def test_a_device_without_partitions_is_its_own(made: list[_Trainer], tmp_path: Path) -> None:
    context = _context(tmp_path)
    context.node_config = {}
    module.app(_asked(Phase.TRAIN), context)
    assert (made[0].place.partition, made[0].place.partitions) == (0, 1)


def test_a_device_does_not_train_private_arms_with_noise_that_others_can_repeat(
    made: list[_Trainer], tmp_path: Path
) -> None:
    content = instruction_content(to_record(SHARED), Instruction("dual_dp", 2, Phase.TRAIN))
    message = Message(content, 9, Phase.TRAIN.value)
    message.metadata.__dict__["_message_id"] = "m0"
    simulated, device = _context(tmp_path), _context(tmp_path)
    device.node_config = {}
    assert not module.app(message, simulated).has_error()
    trained = len(made)
    refused = module.app(message, device)
    assert refused.error.reason.endswith(": privacy.noise") and len(made) == trained
    system = _context(tmp_path, config={**RunConfig().to_flat(), "privacy.noise": "system"})
    system.node_config = {}
    assert not module.app(message, system).has_error()


def test_a_device_refuses_a_server_that_takes_it_for_a_node_of_many_users(
    made: list[_Trainer], tmp_path: Path
) -> None:
    content = instruction_content(to_record(SHARED), Instruction("dual_dp", 2, Phase.TRAIN))
    message = Message(content, 9, Phase.TRAIN.value)
    message.metadata.__dict__["_message_id"] = "m0"
    flat = {**RunConfig().to_flat(), "privacy.noise": "system", "privacy.user-noise": 4.0}
    many = _context(tmp_path, config=flat)
    one = _context(tmp_path, config={**flat, "federation.users-per-node": 1})
    many.node_config, one.node_config = {}, {}
    refused = module.app(message, many)
    assert refused.error.reason.endswith(": federation.users-per-node") and not made
    assert not module.app(message, one).has_error()


def test_a_profile_stays_on_the_node_and_only_where_it_is_asked_for(
    made: list[_Trainer], tmp_path: Path
) -> None:
    plain = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert not (tmp_path / "profile").exists()
    asked = {**RunConfig().to_flat(), "profile": True}
    profiled = module.app(_asked(Phase.TRAIN), _context(tmp_path, config=asked))
    (file,) = (tmp_path / "profile").iterdir()
    assert "seconds" in file.read_text()
    assert set(profiled.content) == set(plain.content)  # nothing of it travels
