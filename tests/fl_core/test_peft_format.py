"""Export: ``PeftModel.from_pretrained`` gives the engine's logits.  Import: any plain LoRA."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from fl_core.adapters import DualAdapter
from fl_core.base_model import BaseModel
from fl_core.errors import AdapterError
from fl_core.features import FeatureMap
from fl_core.peft_format import export_peft, import_peft
from fl_core.trunk import pad
from tests.fl_core.tiny_models import (
    FAMILIES,
    LAYERS,
    TARGETS,
    Setup,
    distance,
    make_setup,
    mixed_examples,
    tiny_base,
    tiny_features,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # PEFT with a newer transformers
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT corrects it for Conv1D
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match"),
]

KINDS = [
    (shared, personal)
    for shared in ("lora", "b_only", "components")
    for personal in (None, "lora", "b_only", "subspace", "components")
    if personal != "components" or shared == "components"
]
WEIGHTS, CONFIG, HEAD = "adapter_model.safetensors", "adapter_config.json", "reward_head.safetensors"


def export(folder: Path, setup: Setup, user: int = 1, **changed: object) -> tuple[float, float]:
    """User ``user``'s adapter of a setup; returns the fusion weights that it has."""
    fusion = (float(setup.state.fusion[user, 0]), float(setup.state.fusion[user, 1]))
    options = {"personal": setup.state.personal[user], "fusion": fusion, "base": setup.base, **changed}
    export_peft(folder, setup.adapter, setup.state.shared[0], **options)
    return fusion


def engine_logits(setup: Setup, user: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(logits of user ``user`` on all texts, ids, mask) by the engine's own layers."""
    ids, lengths, _ = pad(setup.texts, 0)
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    rows = setup.engine._rows(mixed_examples([user] * len(ids), len(ids), form="votes"))
    terms = setup.engine._row_terms(rows, setup.state, "both")
    with torch.no_grad(), setup.trunk.adapted(terms):
        final = setup.trunk.suffix(setup.trunk.prefix(ids, lengths), lengths)
        return setup.base.model.get_output_embeddings()(final), ids, mask


def peft_logits(folder: Path, base: BaseModel, ids: Tensor, mask: Tensor) -> Tensor:
    loaded = PeftModel.from_pretrained(copy.deepcopy(base.model), folder)
    with torch.no_grad():
        return loaded(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("shared", "personal"), KINDS)
def test_peft_gives_the_engines_logits(
    family: str, shared: str, personal: str | None, tmp_path: Path
) -> None:
    setup = make_setup(family, shared, personal, "dpo")
    export(tmp_path, setup)
    wanted, ids, mask = engine_logits(setup)
    got = peft_logits(tmp_path, setup.base, ids, mask)
    with torch.no_grad():
        plain = setup.base.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    assert distance(got[mask], wanted[mask]) < 1e-5
    assert distance(plain[mask], wanted[mask]) > 0.1
    assert not (tmp_path / HEAD).exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_logits_agree_to_a_hundredth(family: str, tmp_path: Path) -> None:
    """Of the largest logit, and in the mean: bfloat16 itself has steps of 1/256."""
    for shared, personal in (("lora", "lora"), ("components", "components"), ("b_only", "subspace")):
        setup = make_setup(family, shared, personal, "dpo", dtype=torch.bfloat16)
        export(tmp_path, setup)
        wanted, ids, mask = engine_logits(setup)
        got = peft_logits(tmp_path, setup.base, ids, mask)
        assert float((got - wanted)[mask].norm() / wanted[mask].norm()) < 1e-2


def test_a_shared_adapter_alone_is_what_a_zero_personal_weight_gives(tmp_path: Path) -> None:
    setup = make_setup("llama", "lora", "subspace", "dpo")
    export(tmp_path / "zero", setup, fusion=(1.0, 0.0))
    export(tmp_path / "none", setup, fusion=(1.0, 5.0), personal=None)
    zero, none = load_file(tmp_path / "zero" / WEIGHTS), load_file(tmp_path / "none" / WEIGHTS)
    assert set(none) < set(zero)
    for name in (name for name in zero if "lora_A" in name):
        b = name.replace("lora_A", "lora_B")
        alone = none[b] @ none[name] if name in none else torch.zeros(())
        assert torch.allclose(zero[b] @ zero[name], alone, atol=1e-7)


def test_the_reward_head_stands_beside_it_and_gives_the_engines_scores(tmp_path: Path) -> None:
    """From pooled final states of the loaded model, as the module's docstring says."""
    for features in (None, *map(tiny_features, ("plain", "scaled", "gated"))):
        setup = make_setup("llama", "components", "components", "reward", features=features)
        export(tmp_path, setup)
        head = load_file(tmp_path / HEAD)
        loaded = PeftModel.from_pretrained(copy.deepcopy(setup.base.model), tmp_path)
        wanted = setup.engine.scores(np.full(7, 1), np.arange(7), setup.state)
        for text, score in zip(setup.texts, wanted, strict=True):
            with torch.no_grad():
                out = loaded(input_ids=torch.tensor([text.ids]), output_hidden_states=True)
            final = out.hidden_states[-1][0]
            pooled = final[-1]
            if features is not None:
                pooled = torch.cat([pooled, final[list(text.response)].mean(0)])
            found = head["weight"] @ pooled
            if "gate" in head:
                like = torch.sigmoid(pooled @ head["gate"][:-1] + head["gate"][-1])
                found = torch.stack([1 - like, like]).sqrt() @ (found + head["shift"])
            assert distance(found + head["bias"][0], score) < 1e-5
    export(tmp_path, make_setup("llama", "lora", None, "dpo"))
    assert not (tmp_path / HEAD).exists()


def test_files_say_what_they_hold(tmp_path: Path) -> None:
    setup = make_setup("gpt2", "lora", "b_only", "dpo")
    export(tmp_path, setup, base_name="somebody/model")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "somebody/model"
    assert config["fan_in_fan_out"] is True
    assert config["r"] == config["lora_alpha"] == 5
    both, one = "transformer.h.2.attn.c_attn", "transformer.h.1.attn.c_attn"
    assert both in config["target_modules"]
    assert both not in config["rank_pattern"]
    assert config["rank_pattern"][one] == config["alpha_pattern"][one] == 2
    tensors = load_file(tmp_path / WEIGHTS)
    assert len(tensors) == 2 * len(config["target_modules"]) > 0
    assert all(value.numel() for value in tensors.values())


def test_an_adapter_without_layers_or_with_nan_is_not_exported(tmp_path: Path) -> None:
    setup = make_setup("llama", "b_only", "subspace", "reward")
    bare = DualAdapter(
        setup.adapter.shared.model_copy(update={"targets": ""}),
        None,
        (),
        (),
        setup.trunk.hidden,
        True,
        seed=0,
    )
    with pytest.raises(AdapterError, match="no layer is adapted"):
        export_peft(tmp_path, bare, bare.initial_shared(), None, (1.0, 1.0), setup.base)
    with pytest.raises(AdapterError, match="not finite"):
        export(tmp_path, setup, fusion=(float("nan"), 1.0))
    assert not list(tmp_path.iterdir())


# --- Import --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("features", [None, tiny_features("scaled"), tiny_features("gated")])
def test_what_was_exported_comes_back(family: str, features: FeatureMap | None, tmp_path: Path) -> None:
    setup = make_setup(family, "lora", None, "reward", features=features)
    export(tmp_path, setup, fusion=(1.0, 1.0))
    flat = setup.adapter.shared_layout.join(import_peft(tmp_path, setup.adapter, setup.base))
    assert distance(torch.from_numpy(flat), setup.state.shared[0]) < 1e-6


def foreign(folder: Path, family: str = "llama", **changed: object) -> BaseModel:
    """A LoRA that PEFT itself made and saved, on the layers of the tiny setups."""
    base = tiny_base(family)
    options = {
        "r": 2,
        "lora_alpha": 7,
        "target_modules": TARGETS[family].split(","),
        "layers_to_transform": [LAYERS - 2, LAYERS - 1],
        "init_lora_weights": False,
        **changed,
    }
    torch.manual_seed(3)
    get_peft_model(copy.deepcopy(base.model), LoraConfig(**options)).save_pretrained(folder)
    return base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changed", [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 3, "c_attn": 5}}], ids=str
)
def test_anybodys_plain_lora_gives_the_same_logits(
    family: str, changed: dict[str, object], tmp_path: Path
) -> None:
    foreign(tmp_path, family, **changed)
    setup = make_setup(family, "lora", None, "dpo")
    flat = torch.from_numpy(
        setup.adapter.shared_layout.join(import_peft(tmp_path, setup.adapter, setup.base))
    )
    state = setup.state.__class__(flat[None], setup.state.personal, torch.ones(3, 2))
    object.__setattr__(setup, "state", state)
    wanted, ids, mask = engine_logits(setup)
    got = peft_logits(tmp_path, setup.base, ids, mask)
    assert distance(got[mask], wanted[mask]) < 1e-5


def test_a_missing_head_is_zero(tmp_path: Path) -> None:
    foreign(tmp_path)
    setup = make_setup("llama", "lora", None, "reward")
    arrays = import_peft(tmp_path, setup.adapter, setup.base)
    assert not arrays["head.common"].any()
    assert not arrays["head.bias"].any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"r": 3}, "shared.rank=2"),
        ({"target_modules": ["q_proj"]}, "other layers.*missing.*down_proj"),
        ({"layers_to_transform": [0]}, "other layers.*not expected.*layers.0"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changed: dict[str, object], words: str, tmp_path: Path) -> None:
    foreign(tmp_path, **changed)
    setup = make_setup("llama", "lora", None, "reward")
    with pytest.raises(AdapterError, match=words):
        import_peft(tmp_path, setup.adapter, setup.base)


def rewritten(path: Path, change: str) -> None:
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if change == "empty":
        tensors = {}
    elif change == "no A":
        del tensors[first]
    elif change == "no B":
        del tensors[first.replace("lora_A", "lora_B")]
    elif change == "nan":
        tensors[first] = tensors[first] * float("nan")
    elif change == "other":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2)
    elif change == "sharded":
        tensors[first] = torch.zeros(0)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("empty", "holds no tensor"),
        ("no A", "a B, but no A"),
        ("no B", "an A, but no B"),
        ("nan", "not finite"),
        ("other", "lm_head.weight' is not part of a plain LoRA"),
        ("sharded", r"has A \(0,\)"),
    ],
)
def test_damaged_weights_are_refused(change: str, words: str, tmp_path: Path) -> None:
    foreign(tmp_path)
    rewritten(tmp_path / WEIGHTS, change)
    setup = make_setup("llama", "lora", None, "reward")
    with pytest.raises(AdapterError, match=words):
        import_peft(tmp_path, setup.adapter, setup.base)


def test_missing_or_unreadable_files_are_named(tmp_path: Path) -> None:
    setup = make_setup("llama", "lora", None, "reward")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        import_peft(tmp_path / "nowhere", setup.adapter, setup.base)
    foreign(tmp_path)
    (tmp_path / HEAD).write_bytes(b"nonsense")
    with pytest.raises(AdapterError, match="is no reward head"):
        import_peft(tmp_path, setup.adapter, setup.base)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=WEIGHTS):
        import_peft(tmp_path, setup.adapter, setup.base)
    (tmp_path / CONFIG).write_text('{"peft_type": "IA3"}')
    with pytest.raises(AdapterError, match="peft_type='IA3'"):
        import_peft(tmp_path, setup.adapter, setup.base)
    other = make_setup("llama", "b_only", None, "reward")
    with pytest.raises(AdapterError, match=r"shared\.kind='lora', not 'b_only'"):
        import_peft(tmp_path, other.adapter, other.base)
