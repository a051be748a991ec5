"""A few seconds of the real pretraining, on a few texts made here."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_core.base_model import load_base, render_prompt
from fl_core.errors import DataError
from simulation.pretrain import (
    PretrainConfig,
    batches,
    learning_rate_factor,
    pretrain,
    read_dialogues,
    render_turns,
)

SMALL = PretrainConfig(
    minutes=0.04,
    hidden_size=32,
    layers=2,
    heads=2,
    intermediate_size=48,
    vocabulary=400,
    sequence_tokens=32,
    batch_sequences=4,
    held_out_share=0.1,
)


def _write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dialogues with little in them to learn, so that the loss falls within seconds."""
    for name, number in (("topical_chat", 150), ("sgd", 150)):
        turns = [["where is my parcel", f"it is in box {i % 10}", "thanks a lot"] for i in range(number)]
        _write(tmp_path / "text" / f"{name}.jsonl.gz", [{"turns": t} for t in turns])
    answers = [{"prompt": f'"count to {i}"', "responses": {"m": '"one two three"'}} for i in range(40)]
    _write(tmp_path / "alpaca_eval" / "responses.jsonl.gz", answers)
    return tmp_path


def test_dialogues_and_their_chat_form(data: Path) -> None:
    dialogues = list(read_dialogues(data))
    assert len(dialogues) == 340 and dialogues[-1] == ["count to 39", "one two three"]
    assert render_turns(["a ", "b"]) == "<|user|>a<|end|><|assistant|>b<|end|>"


def test_a_pretrained_model_has_learned_and_loads(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    grammar = [["say hello", f"hello {i % 7}"] for i in range(200)]
    config = PretrainConfig(**{**SMALL.__dict__, "grammar_share": 0.25})
    summary = pretrain(config, data, tmp_path / "model", grammar_texts=grammar, report=lines.append)
    assert summary["steps"] > 3 and summary["tokens_seen"] == summary["steps"] * 4 * 32
    base = load_base(str(tmp_path / "model"))
    untrained = math.log(len(base.tokenizer))
    losses = summary["held_out_nats_per_token"]
    assert set(losses) == {"public", "grammar"} and losses["public"] < untrained - 1.0
    stored = json.loads((tmp_path / "model" / "pretraining.json").read_text())
    assert stored == summary and "parameters" in lines[0]
    ids, mask = render_prompt(base.tokenizer, "where is my parcel", "it is in box 3", 64)
    assert base.tokenizer.decode(ids).startswith("<|bos|><|user|>where is my parcel<|end|><|assistant|>")
    assert ids[-1] == base.tokenizer.eos_token_id and mask[-1]
    with torch.no_grad():
        assert torch.isfinite(base.model(torch.tensor([ids])).logits).all()

    more = pretrain(SMALL, data, tmp_path / "more", start_from=tmp_path / "model", report=lambda line: None)
    assert more["held_out_nats_per_token"]["public"] < losses["public"] + 0.2


@pytest.mark.parametrize("missing", ["text/sgd.jsonl.gz", "alpaca_eval/responses.jsonl.gz"])
def test_missing_or_broken_texts_are_named(data: Path, tmp_path: Path, missing: str) -> None:
    (data / missing).write_bytes(b"not gzip")
    with pytest.raises(DataError, match=Path(missing).name):
        pretrain(SMALL, data, tmp_path / "model")
    (data / missing).unlink()
    with pytest.raises(DataError, match="--data must name a folder"):
        pretrain(SMALL, data, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rate_warms_up_holds_and_decays() -> None:
    factors = [learning_rate_factor(progress) for progress in np.linspace(0, 1, 101)]
    assert factors[0] < 0.02 and max(factors) == 1.0 and factors[50] == 1.0
    assert factors[-1] == pytest.approx(0.02) and factors[80] == pytest.approx(0.52)


def test_batches_draw_streams_by_share() -> None:
    streams = [(0.75, np.zeros(100, dtype=np.int32)), (0.25, np.ones(100, dtype=np.int32))]
    drawn = batches(streams, SMALL)
    rows = torch.cat([next(drawn) for _ in range(200)])
    assert rows.shape == (800, 32)
    # 800 draws: the standard deviation of the share is .015.
    assert float(rows.float().mean()) == pytest.approx(0.25, abs=0.06)
