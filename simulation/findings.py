"""The report's first lines: did it help, whom did it hurt, at what cost; from numbers to words.

Every sentence is generated, in both directions: a loss is called a loss, and a difference whose
interval contains zero is never called a gain.  ``simulation.comparison`` decides, this file
only puts it into words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from simulation import wording
from simulation.comparison import Gain, Outcome, gain
from simulation.harm import harms, hurt_headline, hurt_sentences
from simulation.results import Results
from simulation.wording import percent, points

Tone = Literal["good", "bad", "unclear", "plain"]

_GOOD = (Outcome.HELPED, Outcome.HELPED_LITTLE)


@dataclass(frozen=True)
class Answer:
    """One of the three questions with its generated answer; ``tone`` chooses a mark, not words."""

    question: str
    tone: Tone
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """The first lines: ``headline``, three ``answers``, and ``cautions`` to read them with."""

    headline: str
    answers: tuple[Answer, Answer, Answer]
    cautions: tuple[str, ...]


def findings(results: Results) -> Findings:
    """The first lines of the report on ``results``."""
    plain, private = gain(results, "dual", "shared"), private_gain(results)
    main = plain or private
    tone: Tone = _tone(main)
    helped = Answer("Did personalization help?", tone, _verdict(main), tuple(_help_sentences(results)))
    hurt = Answer(
        "Whom did it hurt?",
        "bad" if harms(results) else "plain",
        hurt_headline(results),
        tuple(hurt_sentences(results)),
    )
    cost = Answer("At what cost?", "plain", _cost_headline(results), tuple(_cost_sentences(results)))
    return Findings(_headline(results, plain, private), (helped, hurt, cost), tuple(_cautions(results)))


def private_gain(results: Results) -> Gain | None:
    """Dual over shared with differential privacy on both (else over shared without it)."""
    return gain(results, "dual_dp", "shared_dp") or gain(results, "dual_dp", "shared")


def _outcome(found: Gain | None) -> Outcome:
    return found.outcome if found else Outcome.UNKNOWN


def _tone(found: Gain | None) -> Tone:
    outcome = _outcome(found)
    if outcome in _GOOD:
        return "good"
    return "bad" if outcome is Outcome.WORSE else "unclear"


def _verdict(found: Gain | None) -> str:
    outcome = _outcome(found)
    if outcome is Outcome.UNCLEAR and found is not None and found.value <= 0:
        return "No gain from personalization can be shown."
    return {
        Outcome.HELPED: "Personalization helped.",
        Outcome.HELPED_LITTLE: "Personalization helped, but only a little.",
        Outcome.UNCLEAR: "The difference is too small to tell whether personalization helped.",
        Outcome.NOTHING: "Personalization did not help: it made no difference that matters.",
        Outcome.WORSE: "Personalization did not help: it made the model worse.",
        Outcome.UNKNOWN: "Whether personalization helped was not measured: that takes dual and shared.",
    }[outcome]


def _headline(results: Results, plain: Gain | None, private: Gain | None) -> str:
    text = _verdict(plain or private)
    if plain and private:
        text += " " + _with_privacy(_outcome(plain) in _GOOD, _outcome(private))
    elif private:
        text += " (Measured with differential privacy only.)"
    elif plain:
        text += " (Measured without differential privacy only.)"
    if results.population.simulated:
        text += " The users are simulated, so a gain here proves nothing about people."
    return text


def _with_privacy(helped_without: bool, outcome: Outcome) -> str:
    if outcome in _GOOD:
        little = " a little" if outcome is Outcome.HELPED_LITTLE else ""
        return f"With differential privacy it {'still helps' if helped_without else 'helps'}{little}."
    if outcome is Outcome.WORSE:
        return "With differential privacy it makes the model worse."
    if helped_without:
        return "With differential privacy the gain is lost."
    return "With differential privacy no gain can be shown either."


def _help_sentences(results: Results) -> Iterator[str]:
    plain, private = gain(results, "dual", "shared"), private_gain(results)
    if plain:
        yield f"mean over users: {_versus(results, plain)}{_separation(plain)}."
        yield from _minority_sentence(results, "dual", "shared")
    if private:
        yield f"with differential privacy (DP): {_versus(results, private)}{_separation(private)}."
        yield from _minority_sentence(results, private.arm, private.against)
        yield from _price_of_privacy(results)
    yield from _unseen_sentence(results, plain)
    yield from _versus_local(results)
    yield from _versus_references(results)
    yield from _weak_baseline(results)


def _versus(results: Results, found: Gain, measure: str = "accuracy", unseen: bool = False) -> str:
    """``dual 79.2%, shared 71.6%, +7.6 points (95% interval +6.8 to +8.3)``."""
    mine, theirs = results.evaluated(found.arm, unseen), results.evaluated(found.against, unseen)
    return (
        f"{wording.name(found.arm)} {percent(getattr(mine, measure))}, "
        f"{wording.name(found.against)} {percent(getattr(theirs, measure))}, {difference(found)}"
    )


def difference(found: Gain) -> str:
    """A gain with its interval: ``+7.7 points (95% interval +6.9 to +8.5)``."""
    if found.interval is not None:
        return f"{points(found.value)} (95% interval {wording.interval(found.interval, signed=True)})"
    why = "fewer than 10 users" if found.users else "the users' own figures are missing"
    return f"{points(found.value)} (no interval: {why})"


def _separation(found: Gain) -> str:
    if found.separate is None:
        return ""
    return f"; the arms' own intervals {'do not overlap' if found.separate else 'overlap'}"


def _minority_sentence(results: Results, arm: str, against: str) -> Iterator[str]:
    found = gain(results, arm, against, "minority_accuracy")
    if found is None:
        return
    verdict = {
        Outcome.UNCLEAR: ", too small to tell",
        Outcome.NOTHING: ", no difference that matters",
        Outcome.WORSE: ", worse",
    }.get(found.outcome, "")
    yield (
        f"where a user goes against the majority: {_versus(results, found, 'minority_accuracy')}{verdict}."
    )


def _price_of_privacy(results: Results) -> Iterator[str]:
    loss, beyond = gain(results, "dual_dp", "dual"), gain(results, "dual_dp", "shared")
    if loss:
        yield f"what DP costs: {difference(loss)} between dual with DP and dual."
    if beyond and results.arm("shared_dp") and beyond.outcome not in _GOOD:
        yield (
            f"against the shared model trained without DP, dual with DP shows no gain: {difference(beyond)}."
        )


def _unseen_sentence(results: Results, plain: Gain | None) -> Iterator[str]:
    found = gain(results, "dual", "shared", "accuracy_unseen") or gain(
        results, "dual_dp", "shared_dp", "accuracy_unseen"
    )
    if found is None:
        return
    text = f"on texts new to everybody: {_versus(results, found, unseen=True)}."
    if _outcome(plain) in _GOOD and found.outcome not in _GOOD:
        text += " So the gain is shown for texts that others have already judged, not for new ones."
    yield text


def _versus_local(results: Results) -> Iterator[str]:
    for arm, local in (("dual", "local"), ("dual_dp", "local_dp")):
        found = gain(results, arm, local)
        if found and found.outcome not in _GOOD:
            yield (
                f"learning alone on the device does as well or better ({wording.name(arm)} against "
                f"{wording.name(local)}: {difference(found)}), so sharing is not shown to add anything."
            )


def _versus_references(results: Results) -> Iterator[str]:
    best = next((results.arm(arm) for arm in ("dual", "dual_dp") if results.arm(arm)), None)
    rated = [
        (float(entry["accuracy"]), name)
        for name, entry in results.references.items()
        if entry.get("accuracy") is not None
    ]
    if best is None or best.accuracy is None or not rated:
        return
    accuracy, name = max(rated)
    verb = "does better than" if accuracy > best.accuracy else "does worse than"
    arm = "dual" if results.arm("dual") else wording.name("dual_dp")
    yield (
        f"the best reference without a language model, {wording.name(name)} ({percent(accuracy)}), {verb} "
        f"{arm} ({percent(best.accuracy)})."
    )


def _weak_baseline(results: Results) -> Iterator[str]:
    shared = results.arm("shared")
    if shared and shared.ci95 and shared.ci95[0] <= 0.5:
        yield (
            "the shared model itself is not shown to be better than a coin (50%), so beating it says little."
        )


def _cost_headline(results: Results) -> str:
    parts = []
    private = dict(results.private_items())
    arm = next((name for name in ("dual_dp", "shared_dp", "local_dp") if name in private), None)
    parts.append(
        f"Privacy of {wording.name(arm)}: {wording.guarantee(private[arm])}"
        if arm
        else "No arm was trained with differential privacy, so there is no guarantee"
    )
    traffic = _traffic(results)
    if traffic:
        parts.append(
            f"{wording.size(traffic[1])} sent and {wording.size(traffic[2])} received a user and round"
        )
    if results.seconds.get("total") is not None:
        parts.append(f"{wording.duration(results.seconds['total'])} for the whole run")
    return "; ".join(parts) + "."


def _traffic(results: Results) -> tuple[str, float, float] | None:
    for arm in ("dual_dp", "dual", "shared_dp", "shared"):
        entry = results.bytes_per_user_round.get(arm)
        if entry is not None and entry.get("up") is not None and entry.get("down") is not None:
            return arm, float(entry["up"]), float(entry["down"])
    return None


def _cost_sentences(results: Results) -> Iterator[str]:
    private = results.private_items()
    if private:
        units = sorted({str(entry["unit"]) for _, entry in private})
        yield (
            f"the guarantee covers one {' or '.join(units)} at a time"
            + (", not all of a user's records together" if units == ["record"] else "")
            + "; arms without DP have no guarantee."
        )
    traffic = _traffic(results)
    if traffic:
        arm, up, down = traffic
        rounds = rounds_of(results)
        total = f", {wording.size((up + down) * rounds)} over {rounds} rounds" if rounds else ""
        yield f"traffic is that of {wording.name(arm)}, counted on the serialised messages{total}."
    train = results.seconds.get("train")
    if isinstance(train, dict) and train:
        longest = max(train, key=lambda arm: train[arm] or 0.0)
        yield (
            f"training the slowest arm, {wording.name(longest)}, took {wording.duration(train[longest])} "
            "for all users together on this machine."
        )


def rounds_of(results: Results) -> int:
    """Rounds of the run by its configuration, nested or flat; 0 where it does not say."""
    nested = results.config.get("federation")
    value = nested.get("rounds") if isinstance(nested, dict) else results.config.get("federation.rounds")
    return int(value) if value else 0


def _cautions(results: Results) -> Iterator[str]:
    who = results.population
    if who.simulated:
        yield (
            "these users' choices come from a program that gives them preferences to be found; a gain shows "
            "that the method works as built, not that people have such preferences."
        )
    if who.users < 100:
        yield f"only {who.users} users: expect wide intervals and another answer with other users."
    yield (
        "the intervals cover the choice of users, not the luck of training: this is one run with one seed, "
        "and other populations may answer differently."
    )
