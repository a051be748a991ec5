"""What every strategy must do, whatever its method: one suite for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import RunError
from fl_core.wire import Arrays, Reason, from_record, to_record
from strategies.base import FederatedStrategy
from strategies.select import STRATEGIES, strategy_for
from tests.fake_grid import Clock, FakeGrid, Node, answering, config_of, raw_reply

METHODS = tuple(STRATEGIES)
SHAPES = {"head.common": (3,), "trunk.0.q_proj.B": (4, 2)}

pytestmark = pytest.mark.parametrize("method", METHODS)


def _theta(value: float = 0.5) -> Arrays:
    return {name: np.full(shape, value, dtype=np.float32) for name, shape in SHAPES.items()}


def _random(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def _strategy(
    method: str, clock: Clock | None = None, limit: int = 100, **federation: Any
) -> FederatedStrategy:
    timer = (clock or Clock()).timer()
    return strategy_for(config_of(method, **federation), "dual", count_limit=limit, timer=timer)


def _round(
    strategy: FederatedStrategy, grid: FakeGrid, theta: Arrays | None = None, number: int = 1
) -> Arrays | None:
    record = to_record(_theta() if theta is None else theta)
    messages = list(strategy.configure_train(number, record, ConfigRecord(), grid))
    moved, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    return None if moved is None else from_record(moved)


def _expected(method: str, theta: Arrays, mean: dict[str, Any]) -> dict[str, Any]:
    """One step by hand: averaging, or Nesterov's first step, d + mu d with mu = 0.9."""
    factor = 1.9 if method.startswith("fdlora") else 1.0
    return {name: theta[name] + factor * mean[name] for name in theta}


def test_users_weigh_the_same_whatever_their_node(method: str) -> None:
    a, b = _random(1), _random(2)
    moved = _round(_strategy(method), FakeGrid({5: answering(a, 3), 6: answering(b, 1)}))
    want = _expected(method, _theta(), {k: (a[k].astype(float) + b[k]) / 4 for k in a})
    for name in want:
        np.testing.assert_allclose(moved[name], want[name], rtol=1e-6)  # type: ignore[index]


def _bad_replies() -> dict[str, tuple[Callable[[Message], Message | list[Message] | None], Reason]]:
    good = _random(3)

    def changed(**arrays: Any) -> Callable[[Message], Message]:
        return lambda message: raw_reply(message, {**good, **arrays})

    return {
        "nan": (changed(**{"head.common": np.full(3, np.nan, np.float32)}), Reason.NON_FINITE),
        "shape": (changed(**{"head.common": np.zeros(2, np.float32)}), Reason.SHAPE),
        "dtype": (changed(**{"head.common": np.zeros(3, np.float64)}), Reason.DTYPE),
        "extra key": (changed(extra=np.zeros(3, np.float32)), Reason.KEYS),
        "missing key": (lambda m: raw_reply(m, {"head.common": good["head.common"]}), Reason.KEYS),
        "count": (lambda m: raw_reply(m, good, 1_000_000_000), Reason.COUNT),
        "no arrays": (lambda m: Message(RecordDict(), reply_to=m), Reason.CONTENT),
        "error": (lambda m: Message(Error(2, "failed"), reply_to=m), Reason.ERROR),
        "norm": (lambda m: raw_reply(m, {k: 1e6 * v for k, v in good.items()}), Reason.NORM),
        "silence": (lambda m: None, Reason.NO_REPLY),
        "two answers": (lambda m: [raw_reply(m, good), raw_reply(m, good)], Reason.DUPLICATE),
    }


@pytest.mark.parametrize("fault", list(_bad_replies()))
def test_a_bad_reply_loses_its_node_and_not_the_round(method: str, fault: str) -> None:
    bad, reason = _bad_replies()[fault]
    strategy = _strategy(method, max_update_norm=100.0)
    alone = _round(_strategy(method), FakeGrid({6: answering(_random(4), 2)}))
    moved = _round(strategy, FakeGrid({5: bad, 6: answering(_random(4), 2)}))
    for name in SHAPES:
        np.testing.assert_array_equal(moved[name], alone[name])  # type: ignore[index]
    stats = strategy.history[-1]
    assert stats.rejected == {reason.value: 1} and stats.replies == 1 and stats.users == 2 and stats.applied


def test_a_reply_is_matched_by_the_message_and_not_by_its_sender(method: str) -> None:
    """An error that the link makes up for a dead node has the link's own id, 1."""

    def dead(message: Message) -> Message:
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    strategy = _strategy(method)
    moved = _round(strategy, FakeGrid({1: answering(_random(4), 2), 5: dead}))
    assert moved is not None
    assert strategy.history[-1].rejected == {"error": 1} and strategy.history[-1].users == 2


def test_an_unsolicited_reply_is_counted_and_ignored(method: str) -> None:
    strategy, grid = _strategy(method), FakeGrid({5: answering(_random(1), 1)})
    messages = list(strategy.configure_train(1, to_record(_theta()), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    stray = Message(replies[0].content, reply_to=messages[0])
    stray.metadata.__dict__["_reply_to_message_id"] = "another"
    strategy.aggregate_train(1, [stray, *replies])
    assert strategy.history[-1].rejected == {"unsolicited": 1} and strategy.history[-1].replies == 1


def test_an_absent_node_is_not_a_rejected_one(method: str) -> None:
    from fl_core.wire import reply_content

    strategy = _strategy(method)
    away: Node = lambda message: Message(reply_content(0), reply_to=message)  # noqa: E731
    assert _round(strategy, FakeGrid({5: away, 6: away})) is None
    assert strategy.history[-1].nobody_there and not strategy.history[-1].rejected


def test_all_rejected_changes_nothing_and_is_reported(method: str) -> None:
    bad, _ = _bad_replies()["nan"]
    strategy = _strategy(method)
    before = strategy.optimizer
    assert _round(strategy, FakeGrid({5: bad, 6: bad})) is None
    assert strategy.optimizer is before
    stats = strategy.history[-1]
    assert stats.rejected == {"non-finite": 2} and not stats.applied and stats.users == 0
    assert "non-finite" in strategy.notes[0]


def test_fewer_than_the_minimum_changes_nothing(method: str) -> None:
    bad, _ = _bad_replies()["nan"]
    strategy = _strategy(method, minimum_nodes=2)
    assert _round(strategy, FakeGrid({5: bad, 6: answering(_random(1), 1)})) is None
    assert strategy.history[-1].replies == 1 and not strategy.history[-1].applied


CANCELLING = (2.0**38, 2.0**-20, -(2.0**38), 3.0, 2.0**-19, -(2.0**37), 2.0**37, 2.0**-21)
"""Added in another order even float64 gives another sum."""


def test_the_order_of_replies_does_not_matter_in_any_bit(method: str) -> None:
    nodes = {10 + i: answering(_theta(value), 1) for i, value in enumerate(CANCELLING)}
    results = [_round(_strategy(method), FakeGrid(nodes, shuffle=seed), _theta(0.0)) for seed in range(5)]
    for other in results[1:]:
        for name in SHAPES:
            assert other[name].tobytes() == results[0][name].tobytes()  # type: ignore[index]


def test_new_node_ids_in_a_new_run_do_not_matter_in_any_bit(method: str) -> None:
    handlers = [answering(_theta(value), 1) for value in CANCELLING]
    runs = [[31, 7, 99, 12, 55, 3, 8, 70], [4, 90, 11, 62, 5, 77, 20, 1]]
    results = [
        _round(_strategy(method), FakeGrid(dict(zip(ids, handlers, strict=True))), _theta(0.0))
        for ids in runs
    ]
    for name in SHAPES:
        assert results[0][name].tobytes() == results[1][name].tobytes()  # type: ignore[index]


def _shards(users: list[Arrays], sizes: list[int]) -> FakeGrid:
    nodes: dict[int, Node] = {}
    for index, size in enumerate(sizes):
        start = sum(sizes[:index])
        total = {
            k: sum((u[k] for u in users[start : start + size]), np.zeros_like(users[0][k])) for k in SHAPES
        }
        nodes[100 + index] = answering(total, size)
    return FakeGrid(nodes)


@pytest.mark.parametrize("sizes", [[1] * 12, [12], [1, 11], [5, 4, 3]])
def test_how_users_are_sharded_does_not_matter(method: str, sizes: list[int]) -> None:
    """Updates in multiples of 1/64, whose float32 sums are exact: equal in every bit."""
    rng = np.random.default_rng(0)
    users = [
        {k: (rng.integers(-64, 64, s) / 64).astype(np.float32) for k, s in SHAPES.items()} for _ in range(12)
    ]
    moved = _round(_strategy(method), _shards(users, sizes))
    reference = _round(_strategy(method), _shards(users, [1] * 12))
    for name in SHAPES:
        assert moved[name].tobytes() == reference[name].tobytes()  # type: ignore[index]


def test_the_same_seed_samples_the_same_nodes(method: str) -> None:
    def sampled(seed: int, rounds: int) -> list[list[int]]:
        config = config_of(method, fraction=0.3).model_copy(update={"seed": seed})
        strategy = strategy_for(config, "dual", timer=Clock().timer())
        grid = FakeGrid({node: answering(_random(1), 1) for node in range(2, 32)})
        for number in range(1, rounds + 1):
            _round(strategy, grid, number=number)
        nodes = [(m.metadata.group_id, m.metadata.dst_node_id) for m in grid.pushed]
        return [[node for group, node in nodes if group == str(r)] for r in range(1, rounds + 1)]

    np.random.seed(0)
    first = sampled(5, 3)
    np.random.seed(1)
    assert first == sampled(5, 3), "only its own generator decides"
    assert all(len(nodes) == 9 and len(set(nodes)) == 9 for nodes in first)
    assert len({tuple(nodes) for nodes in first}) == 3, "each round draws anew"
    assert first != sampled(6, 3)


def test_a_repeated_round_asks_a_new_sample(method: str) -> None:
    strategy = _strategy(method, fraction=0.3)
    grid = FakeGrid({node: answering(_random(1), 1) for node in range(2, 32)})
    _round(strategy, grid)
    _round(strategy, grid)
    asked = [m.metadata.dst_node_id for m in grid.pushed]
    assert asked[:9] != asked[9:] and [stats.attempt for stats in strategy.history] == [0, 1]


def test_too_few_nodes_end_at_the_deadline(method: str) -> None:
    clock = Clock()
    strategy = _strategy(method, clock, minimum_nodes=3, deadline_seconds=20.0)
    with pytest.raises(RunError, match=r"1 nodes were online.*minimum-nodes=3"):
        _round(strategy, FakeGrid({5: answering(_random(1), 1)}))
    assert 20 <= clock.seconds < 21


def test_instructions_carry_arm_round_phase_and_nothing_else(method: str) -> None:
    grid = FakeGrid({5: answering(_random(1), 1)})
    _round(_strategy(method, deadline_seconds=33.0), grid, number=4)
    message = grid.pushed[0]
    assert dict(message.content.config_records["instruction"]) == {
        "arm": "dual",
        "round": 4,
        "phase": "train",
    }
    assert message.metadata.message_type == "train" and message.metadata.ttl == 33.0


def test_nothing_is_evaluated_on_devices(method: str) -> None:
    strategy, grid = _strategy(method), FakeGrid({5: answering(_random(1), 1)})
    assert list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_evaluate(1, []) is None


def test_flower_s_own_loop_can_run_it(method: str) -> None:
    """Three rounds by ``Strategy.start``, as a user of Flower would."""
    grid = FakeGrid({5: answering(_theta(0.25), 2), 6: answering(_theta(0.25), 2)})
    result = _strategy(method).start(grid, to_record(_theta()), num_rounds=3, timeout=5.0)
    assert result.train_metrics_clientapp[3]["users"] == 4
    if not method.startswith("fdlora"):
        np.testing.assert_allclose(from_record(result.arrays)["head.common"], 0.5 + 3 * 0.125)


def test_bytes_are_those_of_the_messages(method: str) -> None:
    from fl_core.wire import serialized_bytes

    strategy, grid = _strategy(method), FakeGrid({5: answering(_random(1), 1), 6: answering(_random(2), 1)})
    _round(strategy, grid)
    stats = strategy.history[-1]
    assert stats.bytes_down == 2 * serialized_bytes(grid.pushed[0].content) == 2 * stats.bytes_down_per_user
    assert stats.bytes_up == pytest.approx(2 * stats.bytes_up_per_user) and stats.bytes_up_per_user > 4 * 11


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
NAMES = st.sampled_from(["head.common", "trunk.0.q_proj.B", "other", ""])
DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.complex64, np.bool_])


@st.composite
def _malformed(draw: Any) -> Callable[[Message], Message]:
    """Any reply: forged arrays under any names, any count, or well-formed but for one number."""
    arrays: dict[str, Any] = dict(_random(1)) if draw(st.booleans()) else {}
    for name in draw(st.lists(NAMES, max_size=3)):
        shape = draw(st.sampled_from([(), (3,), (4, 2), (2, 4), (0,), (10_000,)]))
        with np.errstate(all="ignore"):
            value = np.full(shape, draw(FLOATS)).astype(draw(DTYPES))
        array = Array(value)
        if draw(st.booleans()):
            cut, tail = draw(st.integers(0, len(array.data))), draw(st.binary(max_size=40))
            declared = draw(st.sampled_from([(3,), (4, 2), shape]))
            array = Array(
                draw(st.sampled_from(["float32", array.dtype])),
                declared,
                array.stype,
                array.data[:cut] + tail,
            )
        arrays[name] = array
    count = draw(
        st.one_of(st.integers(-(2**40), 2**40), st.just(1), FLOATS, st.lists(st.integers(0, 3), max_size=2))
    )
    return lambda message: raw_reply(message, arrays, count)


@given(replies=st.lists(_malformed(), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_no_generated_reply_crashes_a_round_or_spoils_the_adapter(
    method: str, replies: list[Callable[[Message], Message]]
) -> None:
    grid = FakeGrid({5: answering(_random(4), 2), **{20 + i: reply for i, reply in enumerate(replies)}})
    strategy = _strategy(method)
    with np.errstate(all="ignore"):
        moved = _round(strategy, grid)
    assert moved is not None and all(np.all(np.isfinite(value)) for value in moved.values())
    stats = strategy.history[-1]
    assert stats.replies + stats.absent + sum(stats.rejected.values()) == stats.nodes
