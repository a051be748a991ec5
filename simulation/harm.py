"""Whom personalization hurt, in words: users, groups, the bottom decile, universal values.

Everybody is compared with what he had under ``shared``, the model without a personal part and
without privacy's noise (``shared_dp`` where that was not evaluated).
"""

from __future__ import annotations

from collections.abc import Iterator

from simulation import wording
from simulation.comparison import MINIMUM_USERS, SMALL, group_gains
from simulation.results import ArmResult, Results
from simulation.wording import percent, points

VALUES_LIMIT_POINTS = 1.0
"""A larger fall of any user's universal-values accuracy is reported as harm."""

CHANCE = 0.05
"""Share of users that the test of harm calls worse by chance, where the arm does not say."""

_Z95 = 1.645
"""One-sided 95% quantile of the standard normal distribution."""


def baseline(results: Results) -> str:
    """The arm that everybody is compared with."""
    return "shared" if results.arm("shared") or not results.arm("shared_dp") else "shared_dp"


def personal_arms(results: Results) -> tuple[tuple[str, ArmResult], ...]:
    """(name, arm) of the evaluated dual arms, the one without privacy first."""
    found = ((name, results.arm(name)) for name in ("dual", "dual_dp"))
    return tuple((name, arm) for name, arm in found if arm is not None)


def harms(results: Results) -> tuple[str, ...]:
    """What was hurt beyond chance, in words; empty where no harm was found."""
    return tuple(
        f"{what} under {wording.name(name)}"
        for name, arm in personal_arms(results)
        for what in _harms_of(results, name, arm)
    )


def hurt_headline(results: Results) -> str:
    """One sentence: whether harm beyond chance was found, and to whom."""
    arms = personal_arms(results)
    if not arms or results.arm(baseline(results)) is None:
        return "Not measured: it takes the arms dual and shared on the same users."
    found = harms(results)
    if found:
        return f"Harm was found: {'; '.join(found)}."
    if all(arm.harmed_share_significant is None for _, arm in arms):
        return "Whether single users were hurt by more than chance was not tested."
    return "No harm beyond chance was found, which does not prove that nobody was hurt."


def hurt_sentences(results: Results) -> Iterator[str]:
    """Users made worse (raw, significant, and by chance), groups, bottom decile, values."""
    for label, line in _LINES:
        parts = [
            f"{wording.name(name)} {text}"
            for name, arm in personal_arms(results)
            if (text := line(results, name, arm))
        ]
        shared = results.arm(baseline(results))
        before = line(results, baseline(results), shared) if shared and parts else None
        if before:
            parts.append(f"{wording.name(baseline(results))} {before}")
        if parts:
            yield f"{label}: {'; '.join(parts)}."


def _harms_of(results: Results, name: str, arm: ArmResult) -> Iterator[str]:
    if _beyond_chance(arm):
        yield "more users are significantly worse off than chance explains"
    lost = [item for item in group_gains(results, name, baseline(results)) if item.lost]
    if lost:
        yield f"the group{'s' if len(lost) > 1 else ''} {', '.join(item.group for item in lost[:3])}"
    shared = results.arm(baseline(results))
    if shared and _fall(arm.bottom_decile, shared.bottom_decile) >= SMALL:
        yield "the worst-served tenth of users"
    if arm.values_drop_worst is not None and arm.values_drop_worst > VALUES_LIMIT_POINTS:
        yield "a user's universal values"


def _beyond_chance(arm: ArmResult) -> bool:
    """Whether more users are significantly worse than chance shows (one-sided, 95%)."""
    share, chance = arm.harmed_share_significant, _chance(arm)
    if share is None or not arm.users:
        return False
    return bool(share > chance + _Z95 * (chance * (1 - chance) / arm.users) ** 0.5)


def _chance(arm: ArmResult) -> float:
    return CHANCE if arm.harmed_share_expected is None else arm.harmed_share_expected


def _fall(value: float | None, before: float | None) -> float:
    return 0.0 if value is None or before is None else before - value


def _users(results: Results, name: str, arm: ArmResult) -> str | None:
    if arm.harmed_share is None or name == baseline(results):
        return None
    if arm.harmed_share_significant is None:
        return percent(arm.harmed_share)
    return (
        f"{percent(arm.harmed_share)}, significantly {percent(arm.harmed_share_significant)} "
        f"(chance alone: up to {percent(_chance(arm))})"
    )


def _groups(results: Results, name: str, arm: ArmResult) -> str | None:
    if name == baseline(results):
        return None
    gains = [item for item in group_gains(results, name, baseline(results)) if item.users >= MINIMUM_USERS]
    if len(gains) < 2:
        return None
    worst = gains[0]
    span = f" (95% interval {wording.interval(worst.interval, signed=True)})" if worst.interval else ""
    verdict = "a loss beyond chance" if worst.lost else "no loss shown"
    return f"({worst.group}, {worst.users:,} users) {points(worst.value)}{span}, {verdict}"


def _bottom_decile(results: Results, name: str, arm: ArmResult) -> str | None:
    return None if arm.bottom_decile is None else percent(arm.bottom_decile)


def _newcomers(results: Results, name: str, arm: ArmResult) -> str | None:
    return None if arm.accuracy_unfederated is None else percent(arm.accuracy_unfederated)


def _values(results: Results, name: str, arm: ArmResult) -> str | None:
    if arm.values_worst_user is None:
        return None
    text = percent(arm.values_worst_user)
    if arm.values_drop_worst is not None and name != baseline(results):
        text += f" (largest fall of any user {wording.number(max(0.0, arm.values_drop_worst))} points"
        if arm.values_drop_personal is not None:
            own = wording.number(max(0.0, arm.values_drop_personal))
            text += f"; {own} below what this arm's own shared adapter gives"
        text += ")"
    return text


_LINES = (
    ("users below what they had under shared", _users),
    ("the group that fared worst", _groups),
    ("bottom decile of users (one in ten is served this badly or worse)", _bottom_decile),
    ("users who never took part and only personalise", _newcomers),
    ("universal values, worst user", _values),
)
