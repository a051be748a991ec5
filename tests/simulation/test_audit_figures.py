"""The audit's picture: it is drawn for any number of paths, and says where a fault is."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib.image
import numpy as np

from fl_core.audit import Bound
from simulation.audit import Audit, PathAudit, path_audit
from simulation.audit_figures import audit_picture
from tests.simulation.test_audit import ideal


def drawn(**paths: PathAudit) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(audit_picture(Audit(paths, 1e-5, 0))))[..., :3]


def coloured(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(picture - wanted).max(axis=2) < 1e-3).sum())


def test_a_fault_is_marked_and_soundness_is_not() -> None:
    from simulation.figures import GREEN, ORANGE

    good = path_audit("shared", ideal(), 1e-5)
    bad = replace(good, bound=Bound(2 * good.claimed, 10, 10))
    faulty = path_audit("shared", ideal(actual=2.0), 1e-5)
    assert coloured(drawn(one=good), GREEN) > 20 > coloured(drawn(one=good), ORANGE)
    assert coloured(drawn(one=bad), ORANGE) > 20 > coloured(drawn(one=bad), GREEN)
    assert coloured(drawn(one=faulty), ORANGE) > 20


def test_each_observed_path_has_a_histogram() -> None:
    path = path_audit("shared", ideal(), 1e-5)
    one, many = drawn(a=path), drawn(a=path, b=path, c=path, d=path, e=replace(path, observed=None))
    assert many.shape[0] > 1.5 * one.shape[0]
    assert many.shape[1] > 2 * one.shape[1]
