"""The engine against PEFT and Opacus: equal parameters, to rounding, with the noise at zero.

A ``PeftModel`` with the same A and B (two adapters active at once where a personal one is
there), a linear reward head for each adapter, Opacus' ``GradSampleModule`` and ``DPOptimizer``.
Pairs are rows of one concatenated batch whose gradients are added before the norms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fl_core.cohort import StepPlan, train_cohort
from fl_core.engine import CohortState, Examples
from fl_core.noise import SimulationNoise
from fl_core.records import NO_TEXT
from fl_core.trunk import Tokens, pad
from tests.fl_core.tiny_models import LAYERS, Setup, distance, make_setup, mixed_examples

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # PEFT with a newer transformers
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # the first adapted layer's input
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT corrects it for Conv1D
]

STEPS, DENOMINATOR, BETA = 3, 4.0, 0.5
USERS = [0, 0, 0, 0, 0, 2, 2, 2]  # user 1 has no example
LEARNING_RATE = {"sgd": 0.1, "adam": 3e-4}
"""Adam divides by the gradient's own size: where that is of the order of float32 rounding (here
1e-7 of the typical one) a step's direction is rounding too, and only a small rate keeps it small.
``test_cohort`` compares the optimizer itself, on equal gradients."""


class PeftScorer(nn.Module):
    """One user's ``PeftModel`` with a linear head for each adapter: scores or log-probabilities."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        adapter = setup.adapter
        self.setup = setup
        self.specs = {
            "shared": adapter.shared,
            **({"personal": adapter.personal} if adapter.personal else {}),
        }
        base = copy.deepcopy(setup.base.model)
        for name, spec in self.specs.items():
            count = 2 if name == "shared" else 1
            config = LoraConfig(
                r=spec.rank,
                lora_alpha=spec.alpha,
                lora_dropout=0.0,
                target_modules=list(spec.target_names),
                layers_to_transform=list(range(LAYERS - count, LAYERS)),
            )
            if name == "shared":
                self.peft = get_peft_model(base, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
        self.peft.base_model.set_adapter(list(self.specs))
        self.heads = nn.ModuleDict()
        if setup.objective == "reward":
            self.heads = nn.ModuleDict({name: nn.Linear(adapter.hidden, 1) for name in self.specs})
        self.freeze()

    def freeze(self) -> None:
        """Train what the kinds train; PEFT forgets it whenever adapters are switched."""
        for name, parameter in self.named_parameters():
            fixed = "lora_A" in name and self.specs[name.split(".")[-2]].kind == "b_only"
            parameter.requires_grad_(not fixed and ("lora_" in name or name.startswith("heads")))

    def numbers(self, which: str) -> Iterator[tuple[str, Tensor]]:
        """(the engine's name of a part, the parameter that holds it)."""
        for path, layer in self.peft.named_modules():
            if isinstance(layer, LoraLayer) and which in layer.lora_A:
                site = path.split(".layers." if ".layers." in path else ".h.")[1]
                yield f"trunk.{site}.A", layer.lora_A[which].weight
                yield f"trunk.{site}.B", layer.lora_B[which].weight
        if which in self.heads:
            yield ("head.common" if which == "shared" else "head.vector"), self.heads[which].weight
            yield "head.bias", self.heads[which].bias

    @torch.no_grad()
    def become(self, state: CohortState, user: int) -> PeftScorer:
        """Take one user's numbers and fusion weights."""
        adapter = self.setup.adapter
        flats = {"shared": state.shared[user % len(state.shared)], "personal": state.personal[user]}
        for column, (which, spec) in enumerate(self.specs.items()):
            layout = adapter.shared_layout if which == "shared" else adapter.personal_layout
            for name, parameter in self.numbers(which):
                if layout.holds(name):
                    parameter.copy_(layout.view(flats[which], name).reshape(parameter.shape))
                else:
                    parameter.copy_(adapter.public(f"{which}.{name[len('trunk.') :]}"))
            for layer in self.peft.modules():
                if isinstance(layer, LoraLayer) and which in layer.scaling:
                    layer.scaling[which] = spec.scale * float(state.fusion[user, column])
        self.fusion = state.fusion[user]
        return self

    def flat(self) -> Tensor:
        """[D_s + D_p] the trained numbers in the engine's order."""
        parts = []
        for which in self.specs:
            adapter = self.setup.adapter
            layout = adapter.shared_layout if which == "shared" else adapter.personal_layout
            held = dict(self.numbers(which))
            parts += [held[name].detach().reshape(-1) for name, _ in layout.shapes]
        return torch.cat(parts)

    def forward(self, ids: Tensor, lengths: Tensor, response: Tensor) -> Tensor:
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        out = self.peft(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        if self.heads:
            phi = out.hidden_states[-1][torch.arange(len(ids)), lengths - 1]
            scaled = phi / math.sqrt(self.setup.adapter.hidden)
            return sum(
                weight * head(scaled)[:, 0]
                for weight, head in zip(self.fusion, self.heads.values(), strict=False)
            )
        logprobs = out.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (logprobs * response[:, 1:]).sum(1)


def rows_of(examples: Examples, objective: str) -> tuple[np.ndarray, Tensor]:
    """Texts of the concatenated batch, and the example that each row belongs to."""
    pairs = np.flatnonzero(examples.rejected != NO_TEXT)
    if objective == "sft":
        pairs = pairs[:0]
    texts = np.concatenate([examples.chosen, examples.rejected[pairs]])
    return texts, torch.from_numpy(np.concatenate([np.arange(len(examples)), pairs]))


def total_loss(examples: Examples, objective: str, values: Tensor, reference: Tensor, batch: tuple) -> Tensor:
    """Sum of the example losses, written apart from ``fl_core.objectives``."""
    count, label = len(examples), torch.from_numpy(examples.label).float()
    pair = torch.from_numpy(examples.rejected != NO_TEXT)
    gain = values - reference
    if objective == "reward":
        votes = -logsigmoid(label * values[:count])[~pair].sum()
        return votes - logsigmoid(values[:count][pair] - values[count:]).sum()
    if objective == "sft":
        tokens = batch[2][:, 1:].sum(1)
        return (-values / tokens)[label > 0].sum()
    if objective == "kto":
        first = 1 - torch.sigmoid(BETA * label * gain[:count])
        return first.sum() + (1 - torch.sigmoid(-BETA * gain[count:])).sum()
    return -logsigmoid(BETA * (gain[:count] - gain[count:])).sum()


def train_with_opacus(
    scorer: PeftScorer, examples: Examples, texts: tuple[Tokens, ...], optimizer: str, clip: float | None
) -> Tensor:
    """[D] one user's trained numbers after ``STEPS`` steps of DP-SGD or DP-Adam without noise."""
    objective = scorer.setup.objective
    row_texts, example = rows_of(examples, objective)
    batch = pad([texts[int(t)] for t in row_texts], 0)
    with torch.no_grad(), scorer.peft.disable_adapter():
        reference = scorer(*batch) if objective in ("dpo", "kto") else torch.zeros(len(row_texts))
    scorer.freeze()
    trained = [p for p in scorer.parameters() if p.requires_grad]
    wrapped = GradSampleModule(scorer, batch_first=True, loss_reduction="sum")
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    stepper = DPOptimizer(
        kind(trained, lr=LEARNING_RATE[optimizer]),
        noise_multiplier=0.0,
        max_grad_norm=1e12 if clip is None else clip,
        expected_batch_size=DENOMINATOR,
    )
    for _ in range(STEPS):
        stepper.zero_grad()
        total_loss(examples, objective, wrapped(*batch), reference, batch).backward()
        for p in trained:
            rows = p.grad_sample
            p.grad_sample = torch.zeros(len(examples), *rows.shape[1:]).index_add_(0, example, rows)
        stepper.step()
    wrapped.to_standard_module()
    return scorer.flat()


def disagreement(setup: Setup, optimizer: str, clip: float | None, form: str) -> float:
    """Largest distance between both cohorts' parameters after ``STEPS`` steps."""
    examples = mixed_examples(USERS, len(setup.texts), form=form)
    plan = StepPlan(STEPS, optimizer, LEARNING_RATE[optimizer], clip, denominator=DENOMINATOR)
    keys = list(range(setup.state.users))
    trained = train_cohort(setup.engine, setup.state, examples, keys, "both", plan, SimulationNoise(0), 0)
    ours = torch.cat([trained.shared, trained.personal], dim=1)
    assert torch.equal(ours[1], torch.cat([setup.state.shared[0], setup.state.personal[1]]))
    worst = 0.0
    for user in (0, 2):
        own = examples.take(np.flatnonzero(examples.user == user))
        scorer = PeftScorer(setup).become(setup.state, user)
        start = scorer.flat()
        theirs = train_with_opacus(scorer, own, setup.texts, optimizer, clip)
        assert float((theirs - start).abs().max()) > 5e-4
        worst = max(worst, distance(ours[user], theirs))
    return worst


KINDS = [("lora", None), ("b_only", None), ("lora", "lora"), ("b_only", "b_only"), ("lora", "b_only")]


@pytest.mark.parametrize("objective", ["reward", "dpo", "kto", "sft"])
@pytest.mark.parametrize(("shared", "personal"), KINDS)
def test_parameters_equal_those_of_peft_and_opacus(shared: str, personal: str | None, objective: str) -> None:
    """Ragged batches of votes and pairs, a user without records, SGD and Adam, clipped or not."""
    setup = make_setup("llama", shared, personal, objective)
    form = "pairs" if objective == "dpo" else "mixed"
    for optimizer in ("sgd", "adam"):
        for clip in (None, 0.5):
            assert disagreement(setup, optimizer, clip, form) < 1e-6, (optimizer, clip)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_other_families_agree_too(family: str, objective: str) -> None:
    setup = make_setup(family, "lora", "lora", objective)
    form = "pairs" if objective == "dpo" else "mixed"
    assert disagreement(setup, "sgd", 0.5, form) < 1e-6
    assert disagreement(setup, "adam", None, form) < 1e-6


def test_a_wrong_clip_is_seen() -> None:
    """The comparison can fail: a clip one percent off does not pass."""
    setup = make_setup("llama", "lora", None, "reward")
    examples = mixed_examples(USERS, len(setup.texts))
    plan = StepPlan(STEPS, "sgd", 0.1, 0.505, denominator=DENOMINATOR)
    trained = train_cohort(
        setup.engine, setup.state, examples, [0, 1, 2], "shared", plan, SimulationNoise(0), 0
    )
    own = examples.take(np.flatnonzero(examples.user == 0))
    theirs = train_with_opacus(PeftScorer(setup).become(setup.state, 0), own, setup.texts, "sgd", 0.5)
    assert distance(trained.shared[0], theirs) > 1e-5
