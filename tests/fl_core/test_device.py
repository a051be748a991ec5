"""The device is chosen with clear errors, and the engines' tensors are all on it.

Placement is tested on a second device that needs no GPU (``tests.pretend_device``): it gives the
CPU's numbers, and raises where tensors of both devices meet.  It says nothing of CUDA's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core.adapters import DualAdapter
from fl_core.base_model import BaseModel, load_base, moved
from fl_core.cohort import StepPlan, train_cohort
from fl_core.config import Kind, Objective, TrainConfig
from fl_core.device import GPU_TOKENS, pass_tokens, use_device
from fl_core.engine import CohortEngine
from fl_core.errors import ConfigurationError
from fl_core.features import FeatureMap
from fl_core.frozen_features import frozen_features
from fl_core.noise import SimulationNoise
from fl_core.prefix_store import PrefixBudget, PrefixStore
from fl_core.shared_text import SharedTextEngine
from fl_core.trunk import Trunk
from tests.fl_core.tiny_models import (
    distance,
    make_adapter,
    mixed_examples,
    random_state,
    tiny_base,
    tiny_features,
    tiny_texts,
)
from tests.pretend_device import PretendTensor, pretend_device

CPU = torch.device("cpu")
USERS = sorted([0] * 5 + [1] * 3 + [2] * 4)
TEXTS = tiny_texts(9)


def no_gpu(monkeypatch: pytest.MonkeyPatch, build: str | None, visible: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


# The choice ----------------------------------------------------------------------------------


def test_auto_is_the_cpu_where_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, "12.8", "")
    assert use_device("auto") == use_device("cpu") == CPU


@pytest.mark.parametrize(
    ("build", "visible", "said"),
    [
        (None, None, "built without CUDA"),
        ("12.8", "", "CUDA_VISIBLE_DEVICES='' hides all GPUs.*--gpus-per-node 1"),
        ("12.8", None, "no GPU on this machine"),
    ],
)
def test_cuda_without_a_gpu_says_why(
    build: str | None, visible: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch, build, visible)
    with pytest.raises(ConfigurationError, match=f"device='cuda': .*{said}.*set device='cpu'"):
        use_device("cuda")


def test_a_gpu_that_is_seen_is_used_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert use_device("cpu") == CPU and torch.get_float32_matmul_precision() == "high"
        assert use_device("auto") == use_device("cuda") == torch.device("cuda", 0)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_gpu_takes_larger_passes() -> None:
    assert pass_tokens(CPU, 100) == 100
    assert pass_tokens(torch.device("cuda", 0), 100) == 100 * GPU_TOKENS


# The pretended device ------------------------------------------------------------------------


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    with pretend_device() as device:
        here, there = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).to(device)
        row = torch.tensor([1])
        assert there.device == device and isinstance(there, PretendTensor)
        assert torch.equal((there @ there.mT).cpu(), here @ here.mT)
        assert (there[row] * torch.tensor(2.0)).tolist() == [[6, 8, 10]]
        assert torch.zeros(2, device=device).device == torch.arange(2, device=device).device == device
        assert bool((there > 4).any()) and (there > 4).nonzero().tolist() == [[1, 2]]
        refused: list[Callable[[], object]] = [
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[row.to(device)],
            lambda: there.index_add_(0, row, there[:1]),
            lambda: there.__setitem__(row, here[:1]),
        ]
        for attempt in refused:
            with pytest.raises(RuntimeError, match="same device"):
                attempt()
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
        with pytest.raises(RuntimeError, match="true meta tensor"):
            there * torch.tensor([1, 2, 3], device=device)
        there[0] = 7.0
        assert there.tolist() == [[7, 7, 7], [3, 4, 5]] and here[0].tolist() == [0, 1, 2]


def on(base: BaseModel, device: torch.device) -> BaseModel:
    return replace(base, model=moved(base.model, device))


def test_gradients_on_the_pretended_device_are_the_cpus() -> None:
    found = []
    with pretend_device() as device:
        for place in (CPU, device):
            torch.manual_seed(1)
            layer, x = torch.nn.Linear(4, 3).to(place), torch.randn(5, 4).to(place)
            (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
            assert grad.device == place
            found.append(grad.cpu())
    assert torch.equal(*found)


# What runs on the device ---------------------------------------------------------------------


def same_on_both(work: Callable[[torch.device], tuple[Tensor, ...]]) -> None:
    """``work`` gives CPU tensors, the same on both devices but for rounding: passes are of other sizes."""
    with pretend_device() as device:
        for ours, theirs in zip(work(device), work(CPU), strict=True):
            assert type(ours) is Tensor and type(theirs) is Tensor
            assert distance(ours, theirs) < 2e-5 and bool(ours.isfinite().all())


def cohort_step(
    device: torch.device,
    family: str = "llama",
    shared: Kind = "lora",
    personal: Kind | None = "lora",
    objective: Objective = "reward",
    features: FeatureMap | None = None,
    budget: PrefixBudget | None = None,
    steps: int = 2,
) -> tuple[Tensor, ...]:
    """Private steps of three users on all they train, then their scores of all texts."""
    base = on(tiny_base(family), device)
    trunk, adapter = make_adapter(base, family, shared, personal, objective == "reward", True, features)
    store = PrefixStore(trunk, TEXTS, budget=budget)
    train = TrainConfig(objective=objective, beta=0.5)
    engine = CohortEngine(trunk, adapter, TEXTS, train, micro_batch_tokens=60, store=store)
    examples = mixed_examples(USERS, len(TEXTS), form="pairs" if objective == "dpo" else "mixed")
    plan = StepPlan(steps, "adam", 0.01, clip=0.5, sigma=0.3, rate=0.8, denominator=4.0)
    state, noise = random_state(adapter, 3), SimulationNoise(4)
    public = torch.full((adapter.shared_layout.size + adapter.personal_layout.size,), 0.01).to(device)
    done = train_cohort(engine, state, examples, [7, 8, 9], "both", plan, noise, 1, public)
    user, text = (np.repeat(np.arange(3), len(TEXTS)), np.tile(np.arange(len(TEXTS)), 3))
    return done.shared, done.personal, engine.scores(user, text, done)


@pytest.mark.parametrize("objective", ["reward", "dpo", "kto", "sft"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cohort_steps_and_scores(family: str, objective: Objective) -> None:
    same_on_both(lambda device: cohort_step(device, family, objective=objective))


@pytest.mark.parametrize("features", ["gated", "layers"])
@pytest.mark.parametrize(
    ("shared", "personal"),
    [("components", "components"), ("b_only", "subspace"), ("lora", "b_only"), ("lora", None)],
)
def test_cohort_steps_of_every_kind(shared: Kind, personal: Kind | None, features: str) -> None:
    chosen = FeatureMap.plain(24, "layers", 4) if features == "layers" else tiny_features(features)
    same_on_both(lambda device: cohort_step(device, "llama", shared, personal, features=chosen))


def test_kept_activations_come_from_the_device_or_the_file(tmp_path: Path) -> None:
    text = 11 * 24 * 4 + 3 * 24 * 4
    both = PrefixBudget(memory=2 * text, disk=20 * text, folder=tmp_path, dtype=torch.bfloat16)
    same_on_both(lambda device: cohort_step(device, budget=both))
    with pretend_device() as device:
        store = PrefixStore(
            Trunk(on(tiny_base("llama"), device), [(("q_proj",), "top:1")]), TEXTS, budget=both
        )
        store.batch(np.arange(len(TEXTS)))
        kinds = {type(hidden) for hidden, _ in store._kept.values()}
        assert kinds == {PretendTensor, Tensor}, "the budget of memory is the device's, the file is not"
        assert store.batch(np.arange(4)).hidden.device == device


@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize(("shared", "personal"), [("components", "components"), ("lora", "subspace")])
def test_clipped_sum_and_features_of_shared_texts(shared: Kind, personal: Kind, targets: bool) -> None:
    def work(device: torch.device) -> tuple[Tensor, ...]:
        base = on(tiny_base("llama"), device)
        trunk, adapter = make_adapter(base, "llama", shared, personal, True, False, tiny_features("gated"))
        if not targets:
            trunk = Trunk(base, [])
            adapter = DualAdapter(
                adapter.shared, adapter.personal, (), (), 24, True, seed=5, features=tiny_features("gated")
            )
        examples, count = mixed_examples(USERS, len(TEXTS)), len(USERS)
        engine = SharedTextEngine(trunk, adapter, TEXTS, examples, block_tokens=40)
        theta, width = random_state(adapter, 1).shared[0], 1 + 3
        coefficients = torch.randn(count, width, generator=torch.Generator().manual_seed(3))
        weight, only = torch.ones(count), np.arange(count) % 4 != 0
        weight[2] = 0.0
        total, norms = engine.clipped_sum(theta, coefficients, weight, weight, 0.3, only, 0.5 * weight)
        return total, norms, engine.features(theta).features

    same_on_both(work)


def test_a_pass_over_all_texts(tmp_path: Path) -> None:
    def work(device: torch.device) -> tuple[Tensor, ...]:
        store = PrefixStore(Trunk(on(tiny_base("gpt2"), device), []), TEXTS, 40, PrefixBudget(0))
        path = tmp_path / f"{device.type}.safetensors"
        found = frozen_features(path, store, "layers", np.arange(9), np.arange(0), np.arange(9))
        return found.phi @ found.phi.T, found.logprob  # in so many directions, coordinates are not unique

    same_on_both(work)


@pytest.mark.parametrize("forgotten", ["adapter", "examples", "noise"])
def test_what_is_forgotten_on_the_cpu_is_noticed(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if forgotten == "adapter":
        monkeypatch.setattr(DualAdapter, "on", lambda self, device: self)
    elif forgotten == "examples":
        monkeypatch.setattr(CohortEngine, "_here", lambda self, numbers: torch.from_numpy(numbers))
    else:
        monkeypatch.setattr(Tensor, "to", _lazy_to(Tensor.to))
    with pretend_device() as device, pytest.raises(RuntimeError, match="same device"):
        cohort_step(device, "llama", "b_only", "subspace", features=tiny_features("gated"))


def _lazy_to(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Tensor.to that forgets the noise: float32 matrices of as many rows as there are users."""

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wanted = args and isinstance(args[0], torch.device) and tensor.dim() == 2 and len(tensor) == 3
        return tensor if wanted and len(args) == 1 and tensor.shape[1] > 2 else real(tensor, *args, **kwargs)

    return to


def test_a_model_is_loaded_with_fused_attention_where_it_is_not_on_the_cpu(tiny_model_folder: Path) -> None:
    with pretend_device() as device:
        there = load_base(str(tiny_model_folder), "float32", device)
    here = load_base(str(tiny_model_folder))
    assert there.model.device == device and here.model.device == CPU
    assert there.model.config._attn_implementation == "sdpa"
    assert there.weights_hash == here.weights_hash
