"""Each view's guarantee against the events that it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fl_core.config import RunConfig
from fl_core.guarantees import Guarantee, guarantees
from fl_core.privacy import DpEvent, epsilon, gaussian_epsilon
from fl_core.shared import Arm, arm_sigmas, planned_steps

CENTRAL = {"privacy.scope": "personal", "privacy.user-noise": 4.0, "privacy.user-clip": 0.1}


def _views(arm: str, **flat: Any) -> tuple[RunConfig, dict[str, Guarantee]]:
    config = RunConfig.from_flat({key.replace("__", "."): value for key, value in flat.items()})
    found = guarantees(config, arm, *planned_steps(config, Arm.named(arm)))
    return config, {view.view: view for view in found}


def test_noised_uploads_protect_a_record_from_all_three() -> None:
    config, views = _views("dual_dp")
    (shared, personal), sigmas = (
        planned_steps(config, Arm.named("dual_dp")),
        arm_sigmas(config, Arm.named("dual_dp")),
    )
    privacy = config.privacy
    upload = DpEvent(privacy.sampling_rate, sigmas.shared, shared, privacy.clip, "shared")
    own = DpEvent(privacy.sampling_rate, sigmas.personal, personal, privacy.clip, "personal")
    assert list(views) == ["server", "public", "device"]
    rounds = replace(own, steps=personal - config.train.final_steps)  # which shape what is uploaded
    assert views["server"].epsilon == views["public"].epsilon == epsilon([upload, rounds], privacy.delta)
    assert views["server"].epsilon > epsilon([upload], privacy.delta)
    assert views["device"].epsilon == max(epsilon([upload, own], privacy.delta), privacy.fusion_epsilon)
    assert views["server"].epsilon < views["device"].epsilon <= privacy.epsilon
    assert all(view.lifetime == privacy.epsilon for view in views.values())
    assert all(view.unit == "record" and view.delta == privacy.delta for view in views.values())


def test_where_uploads_are_bare_the_server_and_the_public_get_no_guarantee() -> None:
    config, views = _views("dual_dp", privacy__scope="personal")
    for name in ("server", "public"):
        assert views[name].epsilon == math.inf and views[name].note.startswith("none")
        assert views[name].to_mapping()["epsilon"] is None
    assert views["device"].epsilon <= config.privacy.epsilon
    assert "personal adapter alone" in views["device"].note


def test_the_server_s_noise_protects_users_from_the_public() -> None:
    """z = 4 and 6 participations are 2.82 at delta 1e-6; four windows in all double mu."""
    views = _views("dual_dp", **CENTRAL)[1]
    public = views["public"]
    assert (public.unit, public.delta, public.relation) == ("user", 1e-6, "leave out one user's uploads")
    assert public.epsilon == pytest.approx(2.82, abs=0.01)
    assert public.lifetime == gaussian_epsilon(math.sqrt(24) / 4, 1e-6) > public.epsilon
    assert views["server"].epsilon == math.inf
    bare = _views("dual_dp", privacy__scope="personal")[1]["device"]
    assert views["device"].epsilon > bare.epsilon, "a record also acts through the shared adapter"
    assert views["device"].lifetime > views["device"].epsilon, "and in every later window again"


def test_a_record_acts_on_a_release_by_its_own_clip_or_twice_its_user_s() -> None:
    """Of 0.25 / 8 and 2 x 0.1 the former; with local steps only the latter is sure."""
    arm, budget = "shared_dp", 1e-5
    one = _views(arm, **CENTRAL)[1]["device"]
    assert one.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(6) * (0.25 / 8) / 0.4, budget), rel=1e-6)
    several = _views(arm, **CENTRAL, **{"train.local-steps": 2})[1]["device"]
    assert several.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(6) * 0.2 / 0.4, budget), rel=1e-6)


def test_a_local_arm_shows_nothing_to_anybody_else() -> None:
    assert list(_views("local_dp")[1]) == ["device"]
