"""Prefix and suffix against the whole model; the base stays untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from fl_core.adapted_linear import AdaptedLinear, RowTerm
from fl_core.base_model import BaseModel, trunk_layers
from fl_core.errors import ModelError
from fl_core.trunk import Tokens, Trunk, last_token, pad, response_mean
from tests.fl_core.tiny_models import FAMILIES, LAYERS, TARGETS, tiny_base, tiny_texts, tiny_tokenizer


def split(base: BaseModel, family: str, layers: str) -> Trunk:
    return Trunk(base, [(tuple(TARGETS[family].split(",")), layers)])


def test_pad_by_hand() -> None:
    texts = [Tokens((5, 6, 7), (False, False, True)), Tokens((8,), (True,))]
    ids, lengths, response = pad(texts, 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert lengths.tolist() == [3, 1]
    assert response.tolist() == [[False, False, True], [True, False, False]]


def test_the_last_token_is_each_rows_own() -> None:
    final = torch.arange(24.0).view(2, 4, 3)
    assert last_token(final, torch.tensor([4, 2])).tolist() == [[9, 10, 11], [15, 16, 17]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["all", "top:2", "top:1", "1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prefix_and_suffix_are_the_whole_model(family: str, layers: str, dtype: torch.dtype) -> None:
    """Bit for bit where tokens are, with and without padding."""
    base = tiny_base(family, dtype)
    trunk = split(base, family, layers)
    assert trunk.first == {"all": 0, "top:2": 1, "top:1": 2, "1": 1}[layers]
    for texts in (tiny_texts(5), tiny_texts(3, shortest=7, longest=7)):
        ids, lengths, _ = pad(texts, 0)
        there = torch.arange(ids.shape[1])[None] < lengths[:, None]
        mask = None if bool(there.all()) else there.long()
        with torch.no_grad():
            whole = base.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = trunk.prefix(ids, lengths)
            final = trunk.suffix(hidden, lengths)
        assert hidden.dtype == dtype
        assert torch.equal(hidden[there], whole.hidden_states[trunk.first][there])
        assert torch.equal(final[there], whole.hidden_states[-1][there])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str) -> None:
    trunk = split(tiny_base(family), family, "top:2")
    texts = tiny_texts(4)
    ids, lengths, _ = pad(texts, 0)
    with torch.no_grad():
        together = trunk.suffix(trunk.prefix(ids, lengths), lengths)
        for row, text in enumerate(texts):
            alone, length, _ = pad([text], 0)
            single = trunk.suffix(trunk.prefix(alone, length), length)
            assert torch.allclose(together[row, : int(length)], single[0], atol=1e-5)


def test_without_targets_the_suffix_is_the_final_norm_alone() -> None:
    base = tiny_base("llama")
    trunk = Trunk(base, [((), "top:2")])
    assert trunk.first == LAYERS
    assert trunk.sites == {}
    ids, lengths, _ = pad(tiny_texts(2), 0)
    with torch.no_grad():
        hidden = trunk.prefix(ids, lengths)
        assert torch.equal(trunk.suffix(hidden, lengths), base.model.model.norm(hidden))


def test_selections_open_their_layers_and_share_sites() -> None:
    trunk = Trunk(tiny_base("llama"), [(("q_proj", "v_proj"), "top:2"), (("v_proj", "up_proj"), "top:1")])
    assert trunk.names_of(("v_proj", "up_proj"), "top:1") == ("2.self_attn.v_proj", "2.mlp.up_proj")
    assert sorted(trunk.sites) == sorted(
        {
            "1.self_attn.q_proj",
            "1.self_attn.v_proj",
            "2.self_attn.q_proj",
            "2.self_attn.v_proj",
            "2.mlp.up_proj",
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_model_keeps_its_modules_and_parameters(family: str) -> None:
    base = tiny_base(family)
    modules = dict(base.model.named_modules())
    config = base.model.config.to_dict()
    trunk = split(base, family, "top:2")
    assert dict(base.model.named_modules()) == modules
    assert not any(isinstance(module, AdaptedLinear) for module in base.model.modules())
    assert base.model.config.to_dict() == config
    theirs = {id(p) for p in base.model.parameters()}
    for site in trunk.sites.values():
        assert id(site.frozen.weight) in theirs  # no copy of the weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_shows_its_weight_as_out_by_in(family: str) -> None:
    trunk = split(tiny_base(family), family, "top:1")
    for site in trunk.sites.values():
        x = torch.randn(3, site.weight.shape[1])
        bias = site.frozen.bias if site.frozen.bias is not None else 0.0
        assert torch.allclose(site.frozen(x), x @ site.weight.T + bias, atol=1e-5)


def test_terms_are_gone_after_the_context_even_on_an_error() -> None:
    trunk = split(tiny_base("llama"), "llama", "top:1")
    name = next(iter(trunk.sites))
    term = RowTerm(torch.zeros(1, 1, 24), torch.zeros(1, 24, 1))
    with pytest.raises(RuntimeError), trunk.adapted({name: (term,)}, torch.zeros(())):
        assert trunk.sites[name].terms == (term,)
        raise RuntimeError
    assert all(site.terms == () and site.anchor is None for site in trunk.sites.values())


def test_response_logprobs_by_the_whole_models_logits() -> None:
    base = tiny_base("qwen2")
    trunk = split(base, "qwen2", "top:1")
    texts = (*tiny_texts(4), Tokens((3, 4, 5), (False, False, False)))
    ids, lengths, response = pad(texts, 0)
    with torch.no_grad():
        got = trunk.response_logprobs(trunk.suffix(trunk.prefix(ids, lengths), lengths), ids, response)
        for row, text in enumerate(texts):
            logprobs = base.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            wanted = sum(
                float(logprobs[t - 1, text.ids[t]]) for t in range(1, len(text.ids)) if text.response[t]
            )
            assert float(got[row]) == pytest.approx(wanted, abs=1e-4)


def based(model: PreTrainedModel) -> BaseModel:
    return BaseModel(model.requires_grad_(False).eval(), tiny_tokenizer(), "", "")


@pytest.mark.parametrize("scaled", ["embedding_multiplier", "logits_scaling"])
def test_a_model_that_scales_embeddings_or_logits_is_refused(scaled: str) -> None:
    """Granite does both: the suffix would scale its input once more, the vocabulary head not at all."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    plain = GraniteForCausalLM(GraniteConfig(vocab_size=61, **sizes, **heads))
    assert Trunk(based(plain), [(("q_proj",), "top:1")]).first == 2
    model = GraniteForCausalLM(GraniteConfig(vocab_size=61, **sizes, **heads, **{scaled: 4.0}))
    with pytest.raises(ModelError, match=r"GraniteForCausalLM.*scales embeddings or logits"):
        Trunk(based(model), [(("q_proj",), "top:1")])


def test_a_model_without_a_known_final_norm_is_refused() -> None:
    config = OPTConfig(
        vocab_size=61,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=24,
    )
    with pytest.raises(ModelError):
        Trunk(based(OPTForCausalLM(config)), [(("q_proj",), "top:1")])


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ModelError, match="no_such"):
        Trunk(tiny_base("llama"), [(("no_such",), "top:1")])


def test_an_empty_slot_is_the_frozen_layer_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        frozen = nn.Linear(5, 4).to(dtype)
        x = torch.randn(2, 3, 5).to(dtype)
        assert torch.equal(AdaptedLinear(frozen)(x), frozen(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["", "top:2", "all"])
def test_means_at_all_depths_are_those_of_the_models_own_states(family: str, layers: str) -> None:
    base = tiny_base(family)
    trunk = Trunk(base, [(tuple(TARGETS[family].split(",")), layers)] if layers else [])
    ids, lengths, response = pad(tiny_texts(6), 0)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        states = base.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        hooks = [len(layer._forward_hooks) for layer in trunk_layers(base.model)]  # the library's own
        hidden, below = trunk.prefix_means(ids, lengths, response)
        final, means = trunk.suffix_means(hidden, lengths, response, below)
    wanted = torch.stack([response_mean(state, response) for state in states], dim=1)
    assert means.shape == (6, trunk.depths, trunk.hidden)
    assert below.shape[1] == min(trunk.first + 1, trunk.depths - 1)
    assert (means - wanted).abs().max() < 1e-5
    assert torch.equal(final, trunk.suffix(trunk.prefix(ids, lengths), lengths))
    assert [len(layer._forward_hooks) for layer in trunk_layers(base.model)] == hooks
