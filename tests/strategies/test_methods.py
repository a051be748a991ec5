"""What distinguishes the methods: what they refuse, and what the papers say of their means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fl_core.config import AdapterSpec, RunConfig
from fl_core.errors import ConfigurationError, RunError
from fl_core.wire import Arrays, from_record, to_record
from strategies.fdlora_as_printed import FDLoRAAsPrinted
from strategies.select import STRATEGIES, strategy_for
from tests.fake_grid import Clock, FakeGrid, answering, config_of


def test_every_method_of_the_configuration_has_a_strategy_and_says_what_it_is() -> None:
    methods = RunConfig.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
    assert set(methods) == set(STRATEGIES)
    for name, strategy in STRATEGIES.items():
        assert strategy.method == name and strategy.about


def test_the_default_configuration_is_a_valid_one() -> None:
    assert strategy_for(RunConfig(), "dual").method == "components"


@pytest.mark.parametrize(
    ("method", "changes", "names"),
    [
        ("fedit", {"shared": AdapterSpec(kind="b_only")}, "shared.kind='b_only' must be 'lora'"),
        ("ffa", {"shared": AdapterSpec(kind="lora")}, "shared.kind='lora' must be 'b_only'"),
        ("components", {"shared": AdapterSpec(kind="lora")}, "must be 'components'"),
        ("components", {"personal": AdapterSpec(kind="lora")}, "personal.kind='lora'"),
        ("fedit", {"personal": AdapterSpec(kind="components")}, "personal.kind='components'"),
        ("fdlora", {"shared": AdapterSpec(kind="components")}, "shared.kind='components'"),
        ("fdlora-as-printed", {"personal": AdapterSpec(kind="lora", rank=2)}, "one kind, rank"),
    ],
)
def test_a_configuration_of_another_method_is_refused(
    method: str, changes: dict[str, Any], names: str
) -> None:
    config = config_of(method).model_copy(update=changes)
    with pytest.raises(ConfigurationError) as caught:
        strategy_for(config, "dual")
    assert names in str(caught.value) and repr(method) in str(caught.value)


def test_the_personal_kind_is_free_where_no_dual_arm_is_trained() -> None:
    config = config_of("fedit").model_copy(
        update={"personal": AdapterSpec(kind="components"), "arms": "shared"}
    )
    strategy_for(config, "shared")


def test_fdlora_needs_its_outer_optimizer() -> None:
    with pytest.raises(ConfigurationError, match=r"federation\.server='adam' must be 'nesterov'"):
        strategy_for(config_of("fdlora", server="adam"), "dual")


def test_the_leak_must_be_asked_for_even_past_the_configuration_s_own_check() -> None:
    with pytest.raises(ConfigurationError, match="leak-personal-weights"):
        strategy_for(config_of("fdlora-as-printed", leak_personal_weights=False), "dual")
    assert "LEAKS" in FDLoRAAsPrinted.about


def _round(method: str, arrays: Arrays, updates: list[Arrays]) -> Arrays:
    strategy = strategy_for(config_of(method), "dual", timer=Clock().timer())
    grid = FakeGrid({10 + i: answering(update, 1) for i, update in enumerate(updates)})
    messages = list(strategy.configure_train(1, to_record(arrays), ConfigRecord(), grid))
    moved, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert moved is not None
    return from_record(moved)


def _factors(rng: np.random.Generator) -> Arrays:
    return {"A": rng.normal(size=(2, 6)).astype(np.float32), "B": rng.normal(size=(5, 2)).astype(np.float32)}


def test_fedit_averages_the_clients_factors() -> None:
    rng = np.random.default_rng(0)
    start, clients = _factors(rng), [_factors(rng) for _ in range(4)]
    moved = _round("fedit", start, [{k: c[k] - start[k] for k in start} for c in clients])
    for name in start:
        np.testing.assert_allclose(moved[name], np.mean([c[name] for c in clients], axis=0), atol=1e-6)


def test_ffa_is_exact_where_fedit_is_not() -> None:
    """mean(B_k) A = mean(B_k A) with one A; with each client's own A the two differ."""
    rng = np.random.default_rng(1)
    start, clients = _factors(rng), [_factors(rng) for _ in range(4)]
    moved = _round("ffa", {"B": start["B"]}, [{"B": c["B"] - start["B"]} for c in clients])
    exact = np.mean([c["B"] @ start["A"] for c in clients], axis=0)
    np.testing.assert_allclose(moved["B"] @ start["A"], exact, atol=1e-5)
    both = _round("fedit", start, [{k: c[k] - start[k] for k in start} for c in clients])
    assert np.abs(both["B"] @ both["A"] - np.mean([c["B"] @ c["A"] for c in clients], axis=0)).max() > 0.1


def _uploading(own: Arrays, count: int) -> Any:
    def node(message: Message) -> Message:
        assert message.metadata.message_type == "train.upload"
        assert message.content.config_records["instruction"]["round"] == 0
        return answering(own, count)(message)  # type: ignore[return-value]

    return node


def test_as_printed_starts_from_the_mean_of_the_personal_adapters() -> None:
    rng = np.random.default_rng(2)
    start, one, two = (_factors(rng) for _ in range(3))
    grid = FakeGrid({5: _uploading(one, 1), 6: _uploading(two, 3)})
    strategy = strategy_for(config_of("fdlora-as-printed"), "dual", timer=Clock().timer())
    prepared = from_record(strategy.prepare(grid, to_record(start)))
    for name in start:
        np.testing.assert_allclose(prepared[name], (one[name] + two[name]) / 4, atol=1e-6)


def test_as_printed_says_why_it_cannot_start() -> None:
    bad = _factors(np.random.default_rng(2)) | {"A": np.full((2, 6), np.nan, np.float32)}
    strategy = strategy_for(config_of("fdlora-as-printed"), "dual", timer=Clock().timer())
    start = to_record(_factors(np.random.default_rng(3)))
    with pytest.raises(RunError, match=r"0 valid uploads.*non-finite"):
        strategy.prepare(FakeGrid({5: answering(bad, 1)}), start)


@pytest.mark.parametrize("method", ["components", "fedit", "ffa", "fdlora"])
def test_no_other_method_asks_for_anything_before_the_first_round(method: str) -> None:
    grid, start = FakeGrid({}), to_record(_factors(np.random.default_rng(3)))
    assert strategy_for(config_of(method), "dual").prepare(grid, start) is start and not grid.pushed


def test_a_server_rate_that_overflows_changes_nothing_and_is_named() -> None:
    strategy = strategy_for(config_of("fedit", server_lr=1e38), "dual", timer=Clock().timer())
    grid = FakeGrid({5: answering({"A": np.full(2, 1e9, np.float32)}, 1)})
    messages = list(
        strategy.configure_train(1, to_record({"A": np.zeros(2, np.float32)}), ConfigRecord(), grid)
    )
    moved, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert moved is None and "server-lr" in strategy.notes[0]
