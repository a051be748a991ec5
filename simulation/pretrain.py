"""Pretrain the embedded base model: a small Llama with its own tokenizer, on two CPU cores.

The texts are the public dialogues of ``<data>/text``, the answers of ``<data>/alpaca_eval``
(see the data's own README for licences) and, where asked for, texts of the embedded world's
grammar.  No record of any test population (votes, arguments) is read.

Run as ``python -m simulation.pretrain --help``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fl_core.errors import DataError

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class PretrainConfig:
    """What is trained, and for how long.

    ``minutes`` is wall-clock time of the optimisation alone; ``sequence_tokens`` the packed
    length; ``grammar_share`` the share of training tokens drawn from the embedded world.
    """

    minutes: float = 25.0
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 688
    vocabulary: int = 4096
    sequence_tokens: int = 256
    batch_sequences: int = 16
    muon_lr: float = 2e-3
    adam_lr: float = 3e-3
    grammar_share: float = 0.0
    seed: int = 0
    held_out_share: float = 0.01


def read_dialogues(data: Path) -> Iterator[list[str]]:
    """Yield turn lists, user first, from the public texts and the models' answers."""
    for name in ("topical_chat", "sgd"):
        for record in _read_lines(data / "text" / f"{name}.jsonl.gz"):
            yield record["turns"]
    for record in _read_lines(data / "alpaca_eval" / "responses.jsonl.gz"):
        for answer in record["responses"].values():
            yield [record["prompt"].strip().strip('"'), answer.strip().strip('"')]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"pretraining text {str(path)!r} cannot be read ({error}); --data must name a folder with "
            "text/topical_chat.jsonl.gz, text/sgd.jsonl.gz and alpaca_eval/responses.jsonl.gz"
        ) from error


def render_turns(turns: list[str]) -> str:
    """Render alternating turns in the chat format, without the leading ``<|bos|>``."""
    roles = ("<|user|>", "<|assistant|>")
    return "".join(f"{roles[i % 2]}{turn.strip()}<|end|>" for i, turn in enumerate(turns))


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the chat tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", SPECIAL_TOKENS.index("<|bos|>"))]
    )
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of the configured size, tied embeddings."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.int32]:
    """Tokenize and concatenate texts, each led by ``<|bos|>``."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.asarray(item.ids, dtype=np.int32) for item in encoded])


def optimizers_of(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, Adam for embeddings and norms."""
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over 2%, constant, then linear decay over the last 40% of the time."""
    return min(1.0, progress / 0.02 + 0.01, (1.0 - progress) / 0.4 + 0.02)


def batches(
    streams: list[tuple[float, npt.NDArray[np.int32]]], config: PretrainConfig
) -> Iterator[torch.Tensor]:
    """Endless [batch, tokens] windows; each row's stream is drawn by its share."""
    generator = np.random.default_rng(config.seed)
    shares = np.array([share for share, _ in streams])
    while True:
        rows = []
        for which in generator.choice(len(streams), size=config.batch_sequences, p=shares / shares.sum()):
            stream = streams[which][1]
            start = int(generator.integers(0, len(stream) - config.sequence_tokens))
            rows.append(stream[start : start + config.sequence_tokens])
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: npt.NDArray[np.int32], config: PretrainConfig) -> float:
    """Mean nats a token over (at most 128) consecutive windows of a held-out stream."""
    width = config.sequence_tokens
    count = min(len(stream) // width, 128)
    windows = torch.from_numpy(stream[: count * width].reshape(count, width).astype(np.int64))
    losses = [float(model(input_ids=chunk, labels=chunk).loss) for chunk in torch.split(windows, 16)]
    return float(np.mean(losses))


def pretrain(
    config: PretrainConfig,
    data: Path,
    out: Path,
    start_from: Path | None = None,
    grammar_texts: list[list[str]] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train (or continue to train) and save model, tokenizer and ``pretraining.json``.

    Raises ``DataError`` where ``data`` lacks the public texts.
    """
    generator = np.random.default_rng(config.seed)
    dialogues = [render_turns(turns) for turns in read_dialogues(data)]
    generator.shuffle(dialogues)
    held = max(64, int(len(dialogues) * config.held_out_share))
    if start_from is None:
        tokenizer = train_tokenizer(
            dialogues[held::2] + [render_turns(t) for t in grammar_texts or []][:20000], config.vocabulary
        )
        model = build_model(config, tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start_from)
        model = LlamaForCausalLM.from_pretrained(start_from, dtype=torch.float32)
    held_out = {"public": pack(dialogues[:held], tokenizer)}
    streams = [(1.0 - config.grammar_share, pack(dialogues[held:], tokenizer))]
    if grammar_texts and config.grammar_share > 0:
        grammar = [render_turns(turns) for turns in grammar_texts]
        held_out["grammar"] = pack(grammar[:held], tokenizer)
        streams.append((config.grammar_share, pack(grammar[held:], tokenizer)))
    report(f"{model.num_parameters():,} parameters, {sum(len(s) for _, s in streams):,} tokens of text")
    tokens, steps = optimise(model, streams, held_out, config, report)
    losses = {name: held_out_loss(model, stream, config) for name, stream in held_out.items()}
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    summary = {
        "config": asdict(config),
        "tokens_seen": tokens,
        "steps": steps,
        "held_out_nats_per_token": losses,
    }
    (out / "pretraining.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def optimise(
    model: LlamaForCausalLM,
    streams: list[tuple[float, npt.NDArray[np.int32]]],
    held_out: dict[str, npt.NDArray[np.int32]],
    config: PretrainConfig,
    report: Callable[[str], None],
) -> tuple[int, int]:
    """Run the time-bounded loop; return (tokens seen, steps)."""
    optimizers = optimizers_of(model, config)
    initial = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start, steps, tokens, smooth = time.monotonic(), 0, 0, math.nan
    for batch in batches(streams, config):
        progress = (time.monotonic() - start) / (60.0 * config.minutes)
        if progress >= 1.0:
            return tokens, steps
        factor = learning_rate_factor(progress)
        for optimizer, rates in zip(optimizers, initial, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps, tokens = steps + 1, tokens + batch.numel()
        value = float(loss.detach())
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        if steps % 50 == 0:
            report(f"step {steps}  {tokens / (time.monotonic() - start):,.0f} tokens/s  loss {smooth:.3f}")
        if steps % 500 == 0:
            report(
                "held out: "
                + str({k: round(held_out_loss(model, v, config), 4) for k, v in held_out.items()})
            )
    raise AssertionError("batches() never ends")


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/ and alpaca_eval/")
    parser.add_argument("--out", type=Path, required=True, help="where to save the model")
    parser.add_argument("--start-from", type=Path, help="continue from a saved model")
    parser.add_argument("--minutes", type=float, default=PretrainConfig.minutes)
    parser.add_argument("--muon-lr", type=float, default=PretrainConfig.muon_lr)
    parser.add_argument("--adam-lr", type=float, default=PretrainConfig.adam_lr)
    parser.add_argument("--grammar-share", type=float, default=PretrainConfig.grammar_share)
    args = parser.parse_args()
    config = PretrainConfig(
        minutes=args.minutes, muon_lr=args.muon_lr, adam_lr=args.adam_lr, grammar_share=args.grammar_share
    )
    grammar = None
    if config.grammar_share > 0:
        from simulation.grammar import pretraining_turns

        grammar = pretraining_turns(seed=config.seed)
    summary = pretrain(
        config, args.data, args.out, args.start_from, grammar, lambda line: print(line, flush=True)
    )
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
