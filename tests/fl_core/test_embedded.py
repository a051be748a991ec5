"""The model that comes with the project: there, small, described, and able to speak."""

from __future__ import annotations

import json
import math

import torch

from fl_core.base_model import embedded_folder, load_base

MOST_BYTES = 12_500_000


def test_the_folder_is_small_and_complete() -> None:
    folder = embedded_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "pretraining.json", "README.md"} <= names


def test_the_card_agrees_with_the_files() -> None:
    folder, base = embedded_folder(), load_base("")
    card = (folder / "README.md").read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    stored = json.loads((folder / "pretraining.json").read_text())
    parameters = sum(p.numel() for p in {id(p): p for p in base.model.parameters()}.values())
    for fact in (
        f"{parameters:,} parameters",
        f"{config['num_hidden_layers']} layers",
        f"width {config['hidden_size']}",
        f"{config['vocab_size']:,} tokens",
        f"{stored['held_out_nats_per_token']['public']:.3f}",
        f"{stored['held_out_nats_per_token']['grammar']:.3f}",
        "CC BY-SA 4.0",
        "CDLA-Sharing",
        "SmolLM2-135M-Instruct",
    ):
        assert fact in card, fact


def test_it_loads_and_speaks() -> None:
    base = load_base("")
    chat = [{"role": "user", "content": "I need a restaurant in San Jose. Can you help me?"}]
    text = base.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = base.model.generate(ids, max_new_tokens=24, do_sample=False)
        loss = float(base.model(input_ids=out, labels=out).loss)
    reply = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(reply.split()) >= 3 and reply.isprintable()
    assert loss < math.log(len(base.tokenizer)) / 2  # a random model's is the whole
