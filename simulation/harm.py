"""Whom personalization hurt, in words: users, groups, the bottom decile, universal values."""

from __future__ import annotations

from collections.abc import Iterator

from simulation import wording
from simulation.comparison import MINIMUM_USERS, group_gains
from simulation.results import ArmResult, Results
from simulation.wording import percent, points

VALUES_LIMIT = 0.01
"""A fall of more than one point in any user's universal-values accuracy is reported as harm."""


def personal_arms(results: Results) -> tuple[tuple[str, ArmResult], ...]:
    """(name, arm) of the evaluated dual arms, the one without privacy first."""
    found = ((name, results.arm(name)) for name in ("dual", "dual_dp"))
    return tuple((name, arm) for name, arm in found if arm is not None)


def is_harmful(results: Results) -> bool:
    """Whether harm beyond chance was found: to users, to a group, or to universal values."""
    return any(
        _beyond_chance(results, arm) or _values_fell(arm) or _hurt_groups(results, name)
        for name, arm in personal_arms(results)
    )


def hurt_headline(results: Results) -> str:
    """One sentence on the share of users made worse, raw and significant, beside chance."""
    arms = personal_arms(results)
    if not arms or arms[0][1].harmed_share is None:
        return "Not measured: it takes the arms dual and shared on the same users."
    name, arm = arms[0]
    text = f"{percent(arm.harmed_share)} of users score lower under {wording.name(name)} than under shared"
    if arm.harmed_share_significant is None:
        return text + "; whether by more than chance was not tested."
    return (
        text + f", {percent(arm.harmed_share_significant)} significantly so: {_beside_chance(results, arm)}."
    )


def hurt_sentences(results: Results) -> Iterator[str]:
    """Further sentences: the private arm, the worst group, the bottom decile, values."""
    for name, arm in personal_arms(results)[1:]:
        if arm.harmed_share is not None and arm.harmed_share_significant is not None:
            yield (
                f"Under {wording.name(name)}: {percent(arm.harmed_share)} lower, "
                f"{percent(arm.harmed_share_significant)} significantly so, {_beside_chance(results, arm)}."
            )
    for name, _ in personal_arms(results):
        yield from _worst_group(results, name)
    for name, arm in personal_arms(results):
        yield from _bottom_decile(results, name, arm)
    for name, arm in personal_arms(results):
        yield from _newcomers(results, name, arm)
    for name, arm in personal_arms(results):
        yield from _values(results, name, arm)


def baseline(arm: str) -> str:
    """The arm without a personal part that ``arm`` is compared with: shared or shared_dp."""
    return "shared_dp" if arm.endswith("_dp") else "shared"


def _beyond_chance(results: Results, arm: ArmResult) -> bool:
    share = arm.harmed_share_significant
    return share is not None and share > results.harm_level


def _beside_chance(results: Results, arm: ArmResult) -> str:
    level = f"{100 * results.harm_level:g}%"
    if _beyond_chance(results, arm):
        return f"more than the {level} or fewer that chance alone would show, so some users were hurt"
    return (
        f"chance alone may show up to {level}, so this is no proof that anybody was hurt, nor that nobody was"
    )


def _worst_group(results: Results, name: str) -> Iterator[str]:
    gains = [item for item in group_gains(results, name, baseline(name)) if item.users >= MINIMUM_USERS]
    if len(gains) < 2:
        return
    worst = gains[0]
    span = f", 95% interval {wording.interval(worst.interval, signed=True)}" if worst.interval else ""
    figures = f"{worst.group} ({worst.users:,} users), {points(worst.value)}{span}"
    if worst.value > 0:
        yield f"Under {wording.name(name)} no group lost on average; least gained {figures}."
    elif worst.lost:
        yield (
            f"Under {wording.name(name)} a group is worse off, by more than the worst of {len(gains)} "
            f"groups would be by chance: {figures}."
        )
    else:
        yield f"Under {wording.name(name)} the worst group is {figures}: too small to tell."


def _hurt_groups(results: Results, name: str) -> bool:
    gains = group_gains(results, name, baseline(name))
    return any(item.lost for item in gains)


def _bottom_decile(results: Results, name: str, arm: ArmResult) -> Iterator[str]:
    shared = results.arm(baseline(name))
    if shared is None or arm.bottom_decile is None or shared.bottom_decile is None:
        return
    change = arm.bottom_decile - shared.bottom_decile
    yield (
        f"The worst-served tenth (bottom decile): {percent(arm.bottom_decile)} under {wording.name(name)}, "
        f"{percent(shared.bottom_decile)} under {wording.name(baseline(name))}, {points(change)}."
    )


def _newcomers(results: Results, name: str, arm: ArmResult) -> Iterator[str]:
    shared = results.arm(baseline(name))
    if shared is None or arm.accuracy_unfederated is None or shared.accuracy_unfederated is None:
        return
    change = arm.accuracy_unfederated - shared.accuracy_unfederated
    yield (
        f"Users who never took part and only personalise: {percent(arm.accuracy_unfederated)} under "
        f"{wording.name(name)}, {percent(shared.accuracy_unfederated)} under "
        f"{wording.name(baseline(name))}, {points(change)}."
    )


def _values_fell(arm: ArmResult) -> bool:
    return arm.values_drop_worst is not None and arm.values_drop_worst > VALUES_LIMIT


def _values(results: Results, name: str, arm: ArmResult) -> Iterator[str]:
    if arm.values_accuracy is None:
        return
    shared = results.arm(baseline(name))
    before = f" ({percent(shared.values_accuracy)} under {wording.name(baseline(name))})" if shared else ""
    text = f"Universal values under {wording.name(name)}: {percent(arm.values_accuracy)} on average{before}"
    if arm.values_worst_user is not None:
        text += f", worst user {percent(arm.values_worst_user)}"
    if arm.values_drop_worst is not None:
        fell = points(max(0.0, arm.values_drop_worst), signed=False)
        text += f"; the largest fall of any user is {fell}"
        text += ", more than the one point allowed" if _values_fell(arm) else ""
    yield text + "."
