"""Margins of whole populations against one user at a time, by the other engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_client.head_arm import HeadArm
from fl_client.trainer import NodeTrainer
from fl_core.engine import CohortEngine, CohortState
from fl_core.records import Split
from fl_core.shared import from_arrays
from simulation.held_out import held_out_pairs
from simulation.scores import CohortScorer, HeadScorer, TextScorer, arm_scorer, base_scorer
from tests.tiny_runs import USERS, finish_arm, nodes_of, tiny_config, tiny_population, without_floor

Folders = Callable[[str], Path]


def _node(model: Path, folder: Path, out: Path, **changes: object) -> NodeTrainer:
    return nodes_of(tiny_config(model, **changes), folder, out, 1)[0]


@pytest.mark.parametrize("form", ["votes", "pairs"])
@pytest.mark.parametrize("arm", ["shared", "local", "dual"])
@pytest.mark.parametrize("split", [Split.SEEN, Split.UNSEEN])
def test_head_margins_are_those_of_each_user_s_own_model(
    tiny_model_folder: Path, tmp_path: Path, form: str, arm: str, split: Split
) -> None:
    without_floor(tiny_population(form)).save(tmp_path / "population")
    node = _node(tiny_model_folder, tmp_path / "population", tmp_path)
    released = finish_arm([node], arm, 2)
    trainer = node.arm(arm)
    assert isinstance(trainer, HeadArm)
    state = None if arm == "shared" else trainer.store.everyone()
    scorer = arm_scorer(node, trainer, None if arm == "local" else released, state)
    assert isinstance(scorer, HeadScorer)
    pairs = held_out_pairs(node.cohort.population, split)
    margins, values = scorer.pairs(pairs), scorer.values(USERS)
    assert len(pairs) > 5

    engine = CohortEngine(trainer.trunk, trainer.adapter, node.cohort.texts.tokens, node.config.train)
    theta = from_arrays(trainer.adapter.shared_layout, released)[None]
    hidden = node.cohort.texts.hidden_values
    for user in range(USERS):
        own = torch.zeros(1, trainer.adapter.personal_layout.size)
        fusion = torch.tensor([[1.0, 0.0]])
        if state is not None:
            own, fusion = torch.from_numpy(state.after[[user]]), torch.from_numpy(state.fusion[[user]])
        one = CohortState(theta, own, fusion)

        def score(texts: np.ndarray, model: CohortState = one) -> np.ndarray:
            texts = texts.astype(np.int64)
            return engine.scores(np.zeros_like(texts), texts, model).numpy()

        mine = pairs.user == user
        slow = score(pairs.chosen[mine]) - score(pairs.rejected[mine])
        np.testing.assert_allclose(margins[mine], slow, atol=2e-5, rtol=1e-5)
        row = values[user] if len(values) > 1 else values[0]
        np.testing.assert_allclose(row, score(hidden.chosen) - score(hidden.rejected), atol=2e-5, rtol=1e-5)
    assert np.abs(margins).max() > 1e-3
    alone = CohortState(
        theta, torch.zeros(1, trainer.adapter.personal_layout.size), torch.tensor([[1.0, 0.0]])
    )
    slow = score(hidden.chosen, alone) - score(hidden.rejected, alone)
    np.testing.assert_allclose(scorer.values_alone()[0], slow, atol=2e-5, rtol=1e-5)


def test_cohort_margins_are_those_of_each_user_s_own_model(
    tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path
) -> None:
    changes = {"train__objective": "dpo", "shared__component_trunk": True, "train__inner_lr": 1.0}
    node = _node(tiny_model_folder, tiny_population_folder("pairs"), tmp_path, **changes)
    released = finish_arm([node], "dual", 2)
    trainer, state = node.arm("dual"), node.arm("dual").store.everyone()
    scorer = arm_scorer(node, trainer, released, state)
    assert isinstance(scorer, CohortScorer)
    pairs = held_out_pairs(node.cohort.population, Split.SEEN)
    margins, values = scorer.pairs(pairs), scorer.values(USERS)
    assert values.shape == (USERS, len(node.cohort.texts.hidden_values))
    unfused = CohortScorer(
        trainer, replace(scorer.state, fusion=torch.tensor([[1.0, 0.0]] * USERS)), scorer.hidden
    )
    np.testing.assert_allclose(np.tile(scorer.values_alone(), (USERS, 1)), unfused.values(USERS), atol=1e-5)
    theta = from_arrays(trainer.adapter.shared_layout, released)[None]
    for place in range(0, len(pairs), 3):
        user = int(pairs.user[place])
        own, fusion = torch.from_numpy(state.after[[user]]), torch.from_numpy(state.fusion[[user]])
        texts = np.array([pairs.chosen[place], pairs.rejected[place]], dtype=np.int64)
        one = scorer.trainer.engine.scores(
            np.zeros(2, dtype=np.int64), texts, CohortState(theta, own, fusion)
        )
        assert margins[place] == pytest.approx(float(one[0] - one[1]), abs=2e-5)


@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_the_base_scores_a_text_by_its_mean_log_probability(
    tiny_model_folder: Path, tiny_population_folder: Folders, tmp_path: Path, objective: str
) -> None:
    changes = {"train__objective": objective, "shared__component_trunk": objective == "dpo"}
    node = _node(tiny_model_folder, tiny_population_folder("pairs"), tmp_path, **changes)
    scorer = base_scorer(node)
    assert (tmp_path / "features.safetensors").exists() == (objective == "reward")
    public = node.cohort.texts.values.chosen
    assert np.isnan(scorer.scores[public]).all()  # nobody asks what the base makes of those that train
    assert isinstance(scorer, TextScorer) and len(scorer.scores) == len(node.cohort.texts.tokens)
    for text in (0, 7, len(node.cohort.texts.tokens) - 1):
        tokens = node.cohort.texts.tokens[text]
        ids = torch.tensor([tokens.ids])
        with torch.no_grad():
            logits = node.cohort.base.model(input_ids=ids).logits[0].log_softmax(-1)
        parts = [float(logits[i - 1, tokens.ids[i]]) for i in range(1, len(tokens.ids)) if tokens.response[i]]
        assert scorer.scores[text] == pytest.approx(np.mean(parts), abs=1e-4)
    pairs = held_out_pairs(node.cohort.population, Split.SEEN)
    expected = scorer.scores[pairs.chosen] - scorer.scores[pairs.rejected]
    np.testing.assert_array_equal(scorer.pairs(pairs), expected)
    assert scorer.values(USERS).shape == (1, len(node.cohort.texts.hidden_values))
