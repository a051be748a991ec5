"""What the wire accepts and, above all, what it does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.errors import WireError
from fl_core.wire import (
    Instruction,
    Phase,
    Reason,
    ReplyError,
    from_record,
    instruction_content,
    norm,
    read_instruction,
    reply_content,
    serialized_bytes,
    to_record,
    validate_count,
    validate_reply,
)
from tests.fake_grid import raw_reply

SHAPES = {"head.common": (3,), "trunk.4.q_proj.B": (2, 3), "scalar": ()}


def _arrays(value: float = 1.0) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, dtype=np.float32) for name, shape in SHAPES.items()}


def _asked() -> Message:
    message = Message(
        instruction_content(to_record(_arrays()), Instruction("dual", 1, Phase.TRAIN)), 9, "train"
    )
    message.metadata.__dict__["_message_id"] = "m0"
    return message


def _rejected(reply: Message, **limits: float) -> Reason:
    with pytest.raises(ReplyError) as caught:
        validate_reply(reply, SHAPES, **limits)  # type: ignore[arg-type]
    return caught.value.reason


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.booleans(),
)
def test_arrays_come_back_bit_for_bit(value: np.ndarray, transpose: bool) -> None:
    value = value.T if transpose else value
    back = from_record(to_record({"x": value}))["x"]
    assert back.dtype == np.float32 and back.shape == value.shape
    assert back.tobytes() == np.asarray(value, order="C").tobytes()


def test_fortran_ordered_bytes_of_another_sender_are_read_right() -> None:
    value = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    back = from_record(ArrayRecord({"x": Array(value)}))["x"]
    np.testing.assert_array_equal(back, value)


def test_reading_agrees_with_numpy_s_own_loader() -> None:
    value = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    record = to_record({"x": value})
    np.testing.assert_array_equal(from_record(record)["x"], np.load(io.BytesIO(record["x"].data)))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_nothing_but_float32_is_sent(dtype: type) -> None:
    with pytest.raises(WireError, match="float32"):
        to_record({"x": np.zeros(3, dtype=dtype)})


def test_instruction_and_reply_round_trip() -> None:
    arrays, asked = read_instruction(_asked().content)
    assert asked == Instruction("dual", 1, Phase.TRAIN)
    np.testing.assert_array_equal(arrays["head.common"], np.ones(3))
    reply = Message(reply_content(4, _arrays(8.0)), reply_to=_asked())
    total, count = validate_reply(reply, SHAPES)
    assert count == 4 and float(total["scalar"]) == 8.0
    assert list(reply.content.metric_records["metrics"].items()) == [("count", 4)]


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"arrays": ArrayRecord()}),
        RecordDict({"arrays": ArrayRecord(), "instruction": MetricRecord({"round": 1})}),
        RecordDict({"arrays": ArrayRecord(), "instruction": ConfigRecord({"arm": "dual", "round": 1})}),
        RecordDict(
            {
                "arrays": ArrayRecord(),
                "instruction": ConfigRecord({"arm": "dual", "round": 1, "phase": "evaluate"}),
            }
        ),
    ],
)
def test_a_malformed_instruction_is_refused(content: RecordDict) -> None:
    with pytest.raises(WireError):
        read_instruction(content)


def _reshaped(**changes: object) -> dict[str, object]:
    return {**_arrays(), **changes}


def _forged(
    shape: tuple[int, ...], data: bytes, dtype: str = "float32", stype: str = "numpy.ndarray"
) -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


GOOD = Array(np.ones(3, dtype=np.float32)).data


@pytest.mark.parametrize(
    ("changes", "count", "reason"),
    [
        ({"head.common": np.full(3, np.nan, np.float32)}, 1, Reason.NON_FINITE),
        ({"head.common": np.full(3, -np.inf, np.float32)}, 1, Reason.NON_FINITE),
        ({"head.common": np.zeros(4, np.float32)}, 1, Reason.SHAPE),
        ({"head.common": np.zeros((3, 1), np.float32)}, 1, Reason.SHAPE),
        ({"head.common": np.zeros(3, np.float64)}, 1, Reason.DTYPE),
        ({"extra": np.zeros(3, np.float32)}, 1, Reason.KEYS),
        ({}, 0, Reason.COUNT),
        ({}, -1, Reason.COUNT),
        ({}, 1_000_000_000, Reason.COUNT),
        ({}, 1.0, Reason.COUNT),
        ({}, [1], Reason.COUNT),
        ({"head.common": _forged((3,), GOOD[:-1])}, 1, Reason.BYTES),
        ({"head.common": _forged((3,), GOOD + b"\0" * 4)}, 1, Reason.BYTES),
        ({"head.common": _forged((3,), b"")}, 1, Reason.BYTES),
        ({"head.common": _forged((3,), GOOD, stype="torch")}, 1, Reason.BYTES),
        ({"head.common": _forged((3,), GOOD + b"\0" * 5000)}, 1, Reason.SIZE),
        ({"head.common": _forged((3,), Array(np.ones(3)).data)}, 1, Reason.DTYPE),
        ({"head.common": _forged((3,), Array(np.ones((1, 3), np.float32)).data)}, 1, Reason.SHAPE),
        ({"head.common": np.full(3, 3e38, np.float32)}, 1, Reason.NORM),
    ],
)
def test_a_bad_reply_is_rejected_with_its_reason(changes: dict, count: object, reason: Reason) -> None:
    assert _rejected(raw_reply(_asked(), _reshaped(**changes), count)) is reason


def test_a_header_that_promises_a_terabyte_allocates_nothing() -> None:
    data = GOOD.replace(b"'shape': (3,), }" + b" " * 13, b"'shape': (274877906944,), }  ")
    assert len(data) == len(GOOD) and data != GOOD
    assert _rejected(raw_reply(_asked(), _reshaped(**{"head.common": _forged((3,), data)}))) is Reason.SHAPE


def test_missing_arrays_and_extra_records_are_rejected() -> None:
    arrays = _arrays()
    del arrays["scalar"]
    assert _rejected(raw_reply(_asked(), arrays)) is Reason.KEYS
    assert _rejected(Message(reply_content(1), reply_to=_asked())) is Reason.CONTENT
    more = reply_content(1, _arrays())
    more["also"] = MetricRecord({"accuracy": 0.5})
    assert _rejected(Message(more, reply_to=_asked())) is Reason.CONTENT
    metrics = reply_content(1, _arrays())
    metrics["metrics"] = MetricRecord({"count": 1, "accuracy": 0.5})
    assert _rejected(Message(metrics, reply_to=_asked())) is Reason.CONTENT
    swapped = RecordDict({"arrays": MetricRecord({"count": 1}), "metrics": MetricRecord({"count": 1})})
    assert _rejected(Message(swapped, reply_to=_asked())) is Reason.CONTENT


def test_an_error_reply_and_an_absent_one_are_told_apart() -> None:
    assert _rejected(Message(Error(2, "a\nb" * 500), reply_to=_asked())) is Reason.ERROR
    assert _rejected(Message(reply_content(0), reply_to=_asked())) is Reason.ABSENT


def test_a_strangers_error_text_cannot_write_over_a_terminal() -> None:
    with pytest.raises(ReplyError) as caught:
        validate_reply(Message(Error(2, "\x1b[2Jgone\nline" + "x" * 5000), reply_to=_asked()), SHAPES)
    assert str(caught.value).isprintable() and len(str(caught.value)) == 300


def test_the_norm_bound_is_per_user() -> None:
    """||sum|| / count: 10 numbers of 2 have norm 6.32; as the sum of 4 users, 1.58 each."""
    reply = Message(reply_content(4, _arrays(2.0)), reply_to=_asked())
    assert norm(_arrays(2.0)) == pytest.approx(2 * np.sqrt(10))
    validate_reply(reply, SHAPES, max_norm=1.6)
    assert _rejected(reply, max_norm=1.5) is Reason.NORM


def test_a_count_alone_is_read_from_zero() -> None:
    assert validate_count(Message(reply_content(0), reply_to=_asked())) == 0
    with pytest.raises(ReplyError):
        validate_count(Message(reply_content(1, _arrays()), reply_to=_asked()))


def test_serialized_bytes_counts_every_object_once() -> None:
    one = serialized_bytes(reply_content(1, {"a": np.ones(1000, np.float32)}))
    same = serialized_bytes(reply_content(1, {k: np.ones(1000, np.float32) for k in "ab"}))
    assert 4000 < one < 5500
    assert same < one + 500, "equal arrays are sent once"


@given(data=st.binary(max_size=300), keep=st.integers(0, len(GOOD)))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_crash_the_reader(data: bytes, keep: int) -> None:
    """A generated tail after a genuine head: only ReplyError, or three finite numbers."""
    try:
        found = from_record(ArrayRecord({"x": _forged((3,), GOOD[:keep] + data)}))["x"]
    except ReplyError:
        return
    assert found.shape == (3,) and np.all(np.isfinite(found))
