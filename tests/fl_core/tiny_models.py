"""Models, texts and cohorts small enough to check the engine against slow, obvious code.

Everything is made here from seeds; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fl_core.adapters import DualAdapter, Site
from fl_core.base_model import BaseModel
from fl_core.config import AdapterSpec, Kind, Objective, TrainConfig
from fl_core.engine import CohortEngine, CohortState, Examples
from fl_core.features import FeatureMap
from fl_core.records import NO_TEXT
from fl_core.trunk import Tokens, Trunk

FAMILIES = ("llama", "qwen2", "gpt2")
VOCABULARY, WIDTH, LAYERS = 61, 24, 3
TARGETS = {
    "llama": "q_proj,v_proj,o_proj,down_proj",
    "qwen2": "q_proj,k_proj,up_proj",
    "gpt2": "c_attn,attn.c_proj,mlp.c_proj",
}
OWN_TARGETS = {"llama": "v_proj,up_proj", "qwen2": "v_proj,up_proj", "gpt2": "c_attn,c_fc"}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one word an id; 0 pads and 1 ends."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = Tokenizer(WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random causal model of three layers whose activations are of order one."""
    torch.manual_seed(seed)
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=2,
            n_positions=32,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=1,
        )
        return GPT2LMHeadModel(config)
    made, kind = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[family]
    config = made(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return kind(config)


def tiny_base(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> BaseModel:
    """The tiny model, frozen, as ``load_base`` would return it."""
    model = tiny_model(family, seed).to(dtype).requires_grad_(False).eval()
    return BaseModel(model, tiny_tokenizer(), f"tiny-{family}", "")


def tiny_texts(count: int, seed: int = 0, shortest: int = 4, longest: int = 11) -> tuple[Tokens, ...]:
    """Ragged random texts, each of a prompt and a response."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        length = int(generator.integers(shortest, longest + 1))
        prompt = int(generator.integers(1, length - 1))
        ids = tuple(int(i) for i in generator.integers(2, VOCABULARY, length))
        texts.append(Tokens(ids, tuple(i >= prompt for i in range(length))))
    return tuple(texts)


def mixed_examples(users: Sequence[int], texts: int, seed: int = 0, form: str = "mixed") -> Examples:
    """One example for each entry of ``users`` (sorted): votes, pairs, or both in turn."""
    generator = np.random.default_rng(seed)
    count = len(users)
    chosen = generator.integers(0, texts, count)
    rejected = (chosen + 1 + generator.integers(0, texts - 1, count)) % texts
    label = np.where(generator.random(count) < 0.5, 1, -1)
    pair = {
        "votes": np.zeros(count, bool),
        "pairs": np.ones(count, bool),
        "mixed": np.arange(count) % 2 == 0,
    }[form]
    return Examples(
        np.array(users, dtype=np.int64),
        chosen.astype(np.int64),
        np.where(pair, rejected, NO_TEXT).astype(np.int64),
        np.where(pair, 1, label).astype(np.int64),
    )


@dataclass(frozen=True)
class Setup:
    """A base, adapters on it, an engine, and a cohort with random parameters."""

    base: BaseModel
    trunk: Trunk
    adapter: DualAdapter
    engine: CohortEngine
    state: CohortState
    texts: tuple[Tokens, ...]
    objective: Objective


def make_adapter(
    base: BaseModel,
    family: str,
    shared: Kind,
    personal: Kind | None,
    head: bool,
    trunk_parts: bool = True,
    features: FeatureMap | None = None,
) -> tuple[Trunk, DualAdapter]:
    """Both adapters on the top layers; without ``trunk_parts`` the personal one in the head alone."""
    own_targets = OWN_TARGETS[family] if trunk_parts and personal != "components" else ""
    spec = AdapterSpec(
        kind=shared, rank=2, alpha=3.0, targets=TARGETS[family], components=3, component_trunk=trunk_parts
    )
    own = AdapterSpec(kind=personal, rank=3, alpha=4.0, targets=own_targets) if personal else None
    opened = [(spec.target_names, "top:2"), (own.target_names if own else (), "top:1")]
    trunk = Trunk(base, opened)
    sites = []
    for names, layers in opened:
        found = [(name, trunk.sites[name].weight.shape) for name in trunk.names_of(names, layers)]
        sites.append(tuple(Site(name, shape[1], shape[0]) for name, shape in found))
    weights = {name: site.weight for name, site in trunk.sites.items()}
    adapter = DualAdapter(
        spec, own, sites[0], sites[1], WIDTH, head, seed=5, weights=weights, features=features
    )
    return trunk, adapter


def tiny_features(kind: str) -> FeatureMap:
    """Last token and mean over the response: "plain", "scaled" by random statistics, or "gated" too."""
    plain = FeatureMap.plain(WIDTH, "last-mean")
    if kind == "plain":
        return plain
    generator = torch.Generator().manual_seed(8)
    pooled = torch.randn(80, 2 * WIDTH, generator=generator) + 0.3
    return plain.fitted(pooled, torch.rand(80, generator=generator) < 0.4 if kind == "gated" else None)


def random_state(adapter: DualAdapter, users: int, seed: int = 1, each: bool = False) -> CohortState:
    """Parameters away from their start, and fusion weights that differ between users."""
    generator = torch.Generator().manual_seed(seed)

    def near(flat: Tensor, rows: int) -> Tensor:
        return flat + 0.3 * torch.randn(rows, len(flat), generator=generator)

    fusion = 0.5 + torch.rand(users, 2, generator=generator)
    shared = near(adapter.initial_shared(), users if each else 1)
    return CohortState(shared, near(adapter.initial_personal(), users), fusion)


def make_setup(
    family: str = "llama",
    shared: Kind = "lora",
    personal: Kind | None = "lora",
    objective: Objective = "reward",
    users: int = 3,
    texts: int = 7,
    dtype: torch.dtype = torch.float32,
    trunk_parts: bool = True,
    each: bool = False,
    micro_batch_tokens: int = 2048,
    features: FeatureMap | None = None,
) -> Setup:
    """Everything that a test of the engine needs."""
    base = tiny_base(family, dtype)
    trunk, adapter = make_adapter(
        base, family, shared, personal, objective == "reward", trunk_parts, features
    )
    tokens = tiny_texts(texts)
    engine = CohortEngine(
        trunk, adapter, tokens, TrainConfig(objective=objective, beta=0.5), micro_batch_tokens
    )
    return Setup(base, trunk, adapter, engine, random_state(adapter, users, each=each), tokens, objective)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| relative to max(1, |b|)."""
    a, b = a.detach(), b.detach()
    return float(((a - b).abs() / b.abs().clamp_min(1.0)).max()) if a.numel() else 0.0
