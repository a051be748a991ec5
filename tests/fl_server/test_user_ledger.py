"""User-level charges on the server's ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_core.atomic import write_bytes
from fl_core.errors import BudgetError
from fl_core.ledger import Ledger, Round
from fl_core.privacy import epsilon, participations
from fl_core.spending import Budget, spent
from fl_server.user_ledger import charge_round, release_round, server_ledger

DELTA = 1e-6


def one_round(ledger: Ledger, number: int, out: Path, most: int = 0, z: float = 4.0) -> None:
    """What the server does: charge, aggregate with noise, checkpoint, mark."""
    ticket = charge_round(ledger, Round("r", "dual", number), z, 0.5, DELTA, most, same_noise=False)
    checkpoint = out / f"checkpoint-{number}"
    write_bytes(checkpoint, np.random.default_rng(number).standard_normal(4).tobytes())
    release_round(ledger, ticket, checkpoint)


@pytest.mark.parametrize(
    ("z", "most", "known"), [(7.0, 6, 1.53), (4.0, 6, 2.82), (2.5, 6, 4.77), (4.0, 16, 4.89)]
)
def test_the_worst_user_pays_for_his_participations_and_the_others_go_on(
    tmp_path: Path, z: float, most: int, known: float
) -> None:
    """Figures of dp_accounting's PLD (facts on privacy, section 1)."""
    ledger = server_ledger(tmp_path, [Budget("public", known + 0.01, DELTA)])
    for number in range(1, most + 5):
        one_round(ledger, number, tmp_path, most, z)
    entries = server_ledger(tmp_path).entries()
    assert {(e.state, e.event.unit, e.event.view) for e in entries} == {("released", "user", "public")}
    found = spent(entries, ledger.units(), "public", DELTA)
    assert found == epsilon([participations(z, most, 0.5)], DELTA) == pytest.approx(known, abs=0.006)
    assert spent(entries, ledger.units(), "personal", DELTA) == 0.0  # a user-level charge is no record's


def test_an_exhausted_user_budget_ends_the_rounds(tmp_path: Path) -> None:
    budget = Budget("public", epsilon([participations(4.0, 3, 0.5)], DELTA), DELTA, days=90)
    ledger = server_ledger(tmp_path, [budget])
    for number in (1, 2, 3):
        one_round(ledger, number, tmp_path)
    with pytest.raises(BudgetError, match=r"public budget of epsilon .* in 90 days is exhausted"):
        one_round(ledger, 4, tmp_path)
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_round_charged_by_a_server_that_died_is_charged_again_with_fresh_noise(tmp_path: Path) -> None:
    key = Round("r", "dual", 1)
    for same_noise, rows in ((True, 1), (True, 1), (False, 2)):
        charge_round(server_ledger(tmp_path), key, 4.0, 0.5, DELTA, 6, same_noise=same_noise)
        assert len(server_ledger(tmp_path).entries()) == rows
