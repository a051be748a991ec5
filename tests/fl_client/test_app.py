"""The node component: parses, calls, replies, and lets no private text out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fl_client import app as module
from fl_core.config import RunConfig, Scalar
from fl_core.errors import ConfigurationError, DataError
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
    assert reply.has_error() and "do not leave this node" in str(reply.error.reason)
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
    assert reply.has_error() and reply.error.reason == module.GENERIC
    assert SECRET.encode() not in reply.deflate()
    log = (tmp_path / "logs" / "node-1.log").read_text()
    assert SECRET in log and "Traceback" in log


def test_errors_of_settings_are_named(made: list[_Trainer], tmp_path: Path) -> None:
    module.app(_asked(Phase.TRAIN), _context(tmp_path))
    made[0].error = ConfigurationError("shared.layers='top:99': the model has 6")
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path))
    assert reply.error.reason == "shared.layers='top:99': the model has 6"
    flat = {**RunConfig().to_flat(), "federation.round": 1}
    reply = module.app(_asked(Phase.TRAIN), _context(tmp_path, config=flat))
    assert "federation.round" in str(reply.error.reason)


def test_a_malformed_instruction_gets_an_error_reply(made: list[_Trainer], tmp_path: Path) -> None:
    message = Message(RecordDict(), 9, "train")
    message.metadata.__dict__["_message_id"] = "m0"
    assert module.app(message, _context(tmp_path)).has_error()


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
