"""Who takes part in a round: drawn for each user and round alone, in whatever order rounds are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_client.cohort import Cohort
from fl_core.base_model import load_base
from tests.tiny_runs import UNFEDERATED, USERS, tiny_config, tiny_population


def _cohort(model: Path, users: list[int], availability: float) -> Cohort:
    made = tiny_population()
    people = replace(made, users=tuple(replace(user, availability=availability) for user in made.users))
    return Cohort(tiny_config(model), people, load_base(str(model)), np.array(users))


def test_rounds_are_drawn_anew_and_each_gives_the_same_again(tiny_model_folder: Path) -> None:
    cohort, rounds = _cohort(tiny_model_folder, list(range(USERS)), 0.5), range(1, 9)
    drawn = [cohort.online(server_round).tolist() for server_round in rounds]
    assert len({tuple(row) for row in drawn}) > 4
    assert [cohort.online(server_round).tolist() for server_round in reversed(rounds)] == drawn[::-1]
    assert not np.array(drawn)[:, list(UNFEDERATED)].any()
    alone = _cohort(tiny_model_folder, [3], 0.5)
    assert [alone.online(server_round)[0] for server_round in rounds] == [row[3] for row in drawn]


def test_users_who_are_always_there_take_part_in_every_round(tiny_model_folder: Path) -> None:
    cohort = _cohort(tiny_model_folder, list(range(USERS)), 1.0)
    assert cohort.online(1).sum() == cohort.online(2).sum() == USERS - len(UNFEDERATED)
