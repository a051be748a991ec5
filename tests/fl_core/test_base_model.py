"""Finding, loading and freezing models made here; targets by name; prompts and their masks."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fl_core import base_model
from fl_core.base_model import (
    embedded_folder,
    find_targets,
    hidden_size,
    holds_model,
    load_base,
    render_prompt,
    trunk_layers,
    weights_hash,
)
from fl_core.errors import ModelError

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
WIDTH = 32


def make_tokenizer(*, chat: bool = True, pad: bool = True, begin: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a few words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["should the city build more bike lanes", "yes it should", "no"], trainer)
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<|pad|>" if pad else None,
        bos_token="<|bos|>" if begin else None,
        eos_token="<|end|>",
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(family: str, layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=300, n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=64)
        )
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family](
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    families = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
    model: PreTrainedModel = families[family](config)
    return model


def save(folder: Path, family: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    make_model(family).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


# --- Loading -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_folder_loads_frozen_and_in_evaluation_mode(family: str, tmp_path: Path) -> None:
    base = load_base(str(save(tmp_path, family)))
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert base.name == str(tmp_path)
    assert all(p.dtype == torch.float32 for p in base.model.parameters())
    assert hidden_size(base.model) == WIDTH
    assert len(trunk_layers(base.model)) == 3
    ids = torch.tensor([[1, 7, 8]])
    with torch.no_grad():
        outputs = [model(ids).logits for model in (base.model, make_model(family).train(False))]
    assert torch.equal(*outputs)


def test_dtype_is_applied_and_is_part_of_the_hash(llama_folder: Path) -> None:
    full, half = load_base(str(llama_folder)), load_base(str(llama_folder), "bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in half.model.parameters())
    assert full.weights_hash != half.weights_hash
    assert full.weights_hash == load_base(str(llama_folder)).weights_hash
    with pytest.raises(ModelError, match="dtype='float16'"):
        load_base(str(llama_folder), "float16")


def test_the_hash_sees_one_changed_number() -> None:
    model = make_model("llama")
    before = weights_hash(model)
    with torch.no_grad():
        next(trunk_layers(model)[2].parameters())[0, 0] += 1e-6
    assert weights_hash(model) != before


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    base = load_base(str(save(tmp_path, tokenizer=make_tokenizer(pad=False))))
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == SPECIAL.index("<|end|>")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path.name}.*must hold config.json"):
        load_base(str(tmp_path))


def test_an_unknown_name_offline_is_named_and_the_network_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def offline(source: str, dtype: torch.dtype, local_files_only: bool) -> None:
        tried.append(local_files_only)
        raise OSError("no connection\nand much more")

    monkeypatch.setattr(base_model, "_from_pretrained", offline)
    with pytest.raises(
        ModelError, match=r"model='some/model'.*\(no connection\); check the name or the network"
    ):
        load_base("some/model")
    assert tried == [True, False]


# --- The embedded model --------------------------------------------------------------------


def place(root: Path, source: Path, *, weights: bool = True) -> Path:
    """Copy a model into ``root/fl_core/embedded``; a bundle's copy lacks the weights."""
    folder = root / "fl_core" / "embedded"
    shutil.copytree(source, folder, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No embedded model anywhere: this file's neighbour, the path, the distribution, the variable."""
    monkeypatch.delenv("DUET_MODEL", raising=False)
    monkeypatch.setattr(base_model, "__file__", str(tmp_path / "bundle" / "fl_core" / "base_model.py"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "bundle"), str(tmp_path / "elsewhere")])
    monkeypatch.setattr(base_model, "DISTRIBUTION", "no-such-distribution")
    return tmp_path


def test_the_embedded_model_is_found_where_the_bundle_has_no_weights(
    nothing_else: Path, llama_folder: Path
) -> None:
    bundled = place(nothing_else / "bundle", llama_folder, weights=False)
    assert not holds_model(bundled)
    with pytest.raises(ModelError, match="DUET_MODEL"):
        embedded_folder()
    installed = place(nothing_else / "elsewhere", llama_folder)
    assert embedded_folder() == installed.resolve()
    assert load_base("").name == "embedded"


def test_the_embedded_model_beside_the_source_comes_first(nothing_else: Path, llama_folder: Path) -> None:
    place(nothing_else / "elsewhere", llama_folder)
    beside = place(nothing_else / "bundle", llama_folder)
    assert embedded_folder() == beside.resolve()


def test_the_embedded_model_of_an_editable_install_is_found(
    nothing_else: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = nothing_else / "a check out"
    source = place(checkout, llama_folder)
    info = nothing_else / "elsewhere" / "some_model_home-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model-home\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(
        json.dumps({"url": checkout.as_uri(), "dir_info": {"editable": True}})
    )
    monkeypatch.setattr(base_model, "DISTRIBUTION", "some-model-home")
    importlib.invalidate_caches()
    assert embedded_folder() == source.resolve()


def test_the_variable_names_the_embedded_model_and_a_wrong_one_is_an_error(
    nothing_else: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(nothing_else / "bundle", llama_folder)
    monkeypatch.setenv("DUET_MODEL", str(llama_folder))
    assert embedded_folder() == llama_folder
    monkeypatch.setenv("DUET_MODEL", str(nothing_else / "mistyped"))
    with pytest.raises(ModelError, match="mistyped"):
        embedded_folder()


# --- Layers and targets --------------------------------------------------------------------


def test_targets_by_name_and_layer() -> None:
    model = make_model("llama")
    found = find_targets(model, ("down_proj", "q_proj"), "top:2")
    assert [(t.layer, t.name) for t in found] == [
        (1, "self_attn.q_proj"), (1, "mlp.down_proj"), (2, "self_attn.q_proj"), (2, "mlp.down_proj"),
    ]  # fmt: skip
    assert (found[1].in_features, found[1].out_features) == (48, WIDTH)
    assert found[0].module is trunk_layers(model)[1].get_submodule("self_attn.q_proj")


def test_targets_of_gpt2_are_conv1d_with_their_shape_the_right_way_round() -> None:
    model = make_model("gpt2")
    both = find_targets(model, ("c_proj",), "0")
    assert [t.name for t in both] == ["attn.c_proj", "mlp.c_proj"]
    (one,) = find_targets(model, ("mlp.c_proj",), "0")
    assert (one.in_features, one.out_features) == (4 * WIDTH, WIDTH)
    assert one.module(torch.zeros(1, one.in_features)).shape == (1, one.out_features)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", [0, 1, 2]), ("top:1", [2]), ("top:3", [0, 1, 2]), ("top:0", []), ("2, 0", [0, 2]), ("1,1", [1])],
)
def test_layer_selections(layers: str, expected: list[int]) -> None:
    assert [t.layer for t in find_targets(make_model("qwen3"), ("v_proj",), layers)] == expected


@pytest.mark.parametrize("layers", ["top:4", "3", "0,7", "top:1,2", "", "last", "-1"])
def test_layers_that_do_not_exist_are_an_error(layers: str) -> None:
    with pytest.raises(ModelError, match=f"layers={layers!r}"):
        find_targets(make_model("llama"), ("q_proj",), layers)


def test_a_name_that_matches_nothing_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"targets='q_proj'.*attn\.c_attn.*mlp\.c_fc"):
        find_targets(make_model("gpt2"), ("c_attn", "q_proj"), "all")
    with pytest.raises(ModelError, match=r"targets='proj'"):  # a suffix of a name is not a name
        find_targets(make_model("llama"), ("proj",), "all")
    assert find_targets(make_model("llama"), (), "all") == []


def test_a_model_of_another_shape_is_an_error_with_what_was_found() -> None:
    config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=16,
    )
    with pytest.raises(ModelError, match=r"OPTForCausalLM.*found: decoder"):
        trunk_layers(OPTForCausalLM(config))
    with pytest.raises(ModelError, match=r"Linear.*found: nothing"):
        trunk_layers(nn.Linear(2, 2))


# --- Prompts -------------------------------------------------------------------------------


def split(ids: list[int], mask: list[bool]) -> tuple[list[int], list[int]]:
    """Prompt and response ids; the mask is one run of False, then one of True."""
    border = mask.index(True)
    assert mask == [False] * border + [True] * (len(ids) - border)
    return ids[:border], ids[border:]


def test_a_chat_prompt_and_its_mask() -> None:
    tokenizer = make_tokenizer()
    prompt, response = split(*render_prompt(tokenizer, "more bike lanes", "yes it should", 100))
    assert tokenizer.decode(prompt) == "<|bos|><|user|>more bike lanes<|end|><|assistant|>"
    assert tokenizer.decode(response) == "yes it should<|end|>"


def test_the_chat_prompt_is_what_the_template_makes_of_the_whole_dialogue() -> None:
    tokenizer = make_tokenizer()
    turns = [{"role": "user", "content": "bike lanes"}, {"role": "assistant", "content": "no"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(render_prompt(tokenizer, "bike lanes", "no", 100)[0]) == whole


@pytest.mark.parametrize(
    ("begin", "prompt", "expected"),
    [
        (True, "bike", "<|bos|>bike\n"),
        (False, "bike", "bike\n"),
        (True, "", "<|bos|>"),
        (False, "", "<|end|>"),
    ],
)
def test_a_prompt_without_template(begin: bool, prompt: str, expected: str) -> None:
    tokenizer = make_tokenizer(chat=False, begin=begin)
    head, tail = split(*render_prompt(tokenizer, prompt, "yes", 100))
    assert tokenizer.decode(head) == expected
    assert tokenizer.decode(tail) == "yes<|end|>"


def test_the_prompt_is_the_same_prefix_before_every_response() -> None:
    tokenizer = make_tokenizer(chat=False)
    heads = {tuple(split(*render_prompt(tokenizer, "bike", r, 100))[0]) for r in ("yes", " yes", "\n", "")}
    assert len(heads) == 1


@pytest.mark.parametrize("limit", [2, 3, 8, 9, 20])
@pytest.mark.parametrize(("prompt_words", "response_words"), [(1, 1), (60, 1), (1, 60), (60, 60), (0, 0)])
def test_cutting_keeps_the_prompts_end_the_responses_beginning_and_the_end_token(
    limit: int, prompt_words: int, response_words: int
) -> None:
    tokenizer = make_tokenizer(chat=False)
    text = "yes no ", "it should "
    arguments = text[0] * prompt_words, text[1] * response_words
    full_head, full_tail = split(*render_prompt(tokenizer, *arguments, 10_000))
    head, tail = split(*render_prompt(tokenizer, *arguments, limit))
    assert len(head) + len(tail) == min(limit, len(full_head) + len(full_tail))
    assert head == full_head[-len(head) :] and len(head) >= 1
    assert tail == [*full_tail[: len(tail) - 1], tokenizer.eos_token_id]
    assert len(tail) >= min(len(full_tail), (limit + 1) // 2)


def test_a_limit_without_room_is_an_error() -> None:
    with pytest.raises(ModelError, match="max_tokens=1"):
        render_prompt(make_tokenizer(), "bike", "yes", 1)
