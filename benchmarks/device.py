"""One device, one user: a DP training step of DPO against TRL's trainer with PEFT.

    duet benchmark device --out docs/device.json

A model of SmolLM2-135M's shape with random weights; 8 pairs of 128 tokens, of which 64 are the
response; LoRA (rank 4 on q, v, o and down) on the top 8 of 30 layers in both.  ``engine`` clips per
example and adds noise; ``trl`` does neither.  Both compute the reference's log-probabilities: the
engine once for each text, TRL at each step or, as ``trl, precomputed``, before the first.  Each
contender is a process of its own and its peak of resident memory is the process's; loading the
libraries and the model is not timed but is in the memory.  Needs ``pip install trl``.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_core.atomic import write_json
from fl_core.errors import ConfigurationError, RunError
from fl_core.profiles import peak_mb

CONTENDERS = ("engine", "trl", "trl, precomputed")
PAIRS, TOKENS, RESPONSE, LAYERS, BETA = 8, 128, 64, 8, 0.1
CLIP, SIGMA, RATE = 0.5, 1.0, 1e-4


def run(out: Path, repetitions: int, steps: int, say: Callable[[str], None]) -> None:
    """Run every contender ``repetitions`` times in turn, print each median and write ``out``.

    Raises ``ConfigurationError`` without TRL, ``RunError`` where a contender fails.
    """
    if importlib.util.find_spec("trl") is None:
        raise ConfigurationError("the baseline needs TRL, which is not installed; pip install trl")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(repetitions):
        for name in CONTENDERS:
            found[name].append(_measured(name, steps))
    rows = {}
    for name, measured in found.items():
        rows[name] = {
            key: [pick([one[key] for one in measured]) for pick in (statistics.median, min, max)]
            for key in measured[0]
        }
        say(line(name, rows[name]))
    ours = rows["engine"]
    ratios = {
        name: {key: row[key][0] / ours[key][0] for key in ("step_seconds", "peak_mb")}
        for name, row in rows.items()
        if name != "engine"
    }
    machine = platform.processor() or platform.machine()
    write_json(
        out, {"machine": machine, "steps": steps, "repetitions": repetitions, "rows": rows, "over": ratios}
    )


def line(name: str, row: dict[str, Any]) -> str:
    """One contender for a person: medians."""
    return (
        f"{name:<17} a step {row['step_seconds'][0]:.2f} s (the first {row['first_seconds'][0]:.2f}), "
        f"peak {row['peak_mb'][0]:.0f} MiB, of which before training {row['start_mb'][0]:.0f}"
    )


def _measured(name: str, steps: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device", name, str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"contender {name!r} failed: {done.stderr.strip()[-800:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _texts() -> Any:
    """[2 PAIRS, TOKENS] ids: the chosen texts, then the rejected ones; a pair shares its prompt."""
    ids = np.random.default_rng(0).integers(5, 49000, (2, PAIRS, TOKENS))
    ids[1, :, : TOKENS - RESPONSE] = ids[0, :, : TOKENS - RESPONSE]
    return ids.reshape(2 * PAIRS, TOKENS)


def _engine(steps: int) -> dict[str, float]:
    import torch

    from benchmarks.speed import base_of, engine_lora
    from fl_core.cohort import StepPlan, train_cohort
    from fl_core.config import TrainConfig
    from fl_core.engine import CohortEngine, CohortState, Examples
    from fl_core.noise import SimulationNoise
    from fl_core.trunk import Tokens

    trunk, adapter = engine_lora(base_of("135m"), LAYERS, head=False)
    shown = tuple(place >= TOKENS - RESPONSE for place in range(TOKENS))
    texts = tuple(Tokens(tuple(int(token) for token in row), shown) for row in _texts())
    engine = CohortEngine(trunk, adapter, texts, TrainConfig(objective="dpo", beta=BETA))
    first = np.arange(PAIRS, dtype=np.int64)
    examples = Examples(np.zeros_like(first), first, first + PAIRS, np.ones_like(first))
    state = CohortState(adapter.initial_shared()[None], torch.zeros(1, 0), torch.ones(1, 2))
    plan = StepPlan(1, "adam", RATE, CLIP, SIGMA, denominator=float(PAIRS))
    start, times = peak_mb(), []
    for step in range(steps):
        began = time.perf_counter()
        state = train_cohort(engine, state, examples, [0], "shared", plan, SimulationNoise(0), step)
        times.append(time.perf_counter() - began)
    return _told(times, start)


def _trl(steps: int, precomputed: bool) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from benchmarks.speed import base_of, peft_lora

    base = base_of("135m")
    ids = torch.from_numpy(_texts())
    shown = torch.zeros_like(ids)
    shown[:, TOKENS - RESPONSE :] = 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": shown}
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS,
            beta=BETA,
            max_length=TOKENS,
            learning_rate=RATE,
            gradient_checkpointing=False,
            bf16=False,
            report_to=[],
            use_cpu=True,
        )
        never = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * PAIRS)
        trainer = DPOTrainer(
            base.model,
            args=settings,
            train_dataset=never,
            processing_class=base.tokenizer,
            peft_config=peft_lora(base, LAYERS, task_type="CAUSAL_LM"),
        )
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1  # which train() would set
        start, times = peak_mb(), []
        began = time.perf_counter()
        if precomputed:
            with torch.no_grad():
                chosen, rejected = trainer.compute_ref_log_probs(trainer.model, dict(batch))
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            trainer.precompute_ref_logps = True
        for _ in range(steps):
            trainer.model.zero_grad()
            trainer.training_step(trainer.model, dict(batch))
            trainer.optimizer.step()
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
    return _told(times, start)


def _told(times: Sequence[float], start: float) -> dict[str, float]:
    """The first step holds what is computed once; the others are the price of a step."""
    later = times[1:] or times
    return {
        "first_seconds": times[0],
        "step_seconds": statistics.median(later),
        "start_mb": start,
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    contender, count = sys.argv[1], int(sys.argv[2])
    told = _engine(count) if contender == "engine" else _trl(count, contender != "trl")
    print(json.dumps(told))
