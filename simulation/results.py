"""What a finished run hands to the report: validated values, and their form in ``report.json``.

All accuracies and shares are fractions in [0, 1]; ``None`` means "does not apply here".  The
arms' measures are defined in ``simulation.metrics``; here they are only checked and carried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

SCHEMA_VERSION = 1
"""Raised when a field of ``report.json`` changes its name or meaning."""

ARM_ORDER = ("base", "shared", "local", "dual", "shared_dp", "local_dp", "dual_dp")
"""Every arm, in the order of all tables and pictures."""

REQUIRED = (
    "accuracy",
    "ci95",
    "bottom_decile",
    "minority_accuracy",
    "harmed_share",
    "harmed_share_significant",
    "values_accuracy",
    "values_worst_user",
    "epsilon_record",
    "delta",
)
"""The fields that every arm of ``report.json`` has, even where their value is null."""


@dataclass(frozen=True)
class ArmResult:
    """One arm's measures over its users; see ``simulation.metrics`` for each definition.

    ``accuracy`` with ``ci95`` (low, high) is the mean over users; ``harmed_share`` the share
    of users below the shared model, ``harmed_share_significant`` those below it significantly,
    ``harmed_share_expected`` the share (at most) that chance alone would call so; ``values_*``
    the accuracy on pairs on which everybody should agree, ``values_drop_worst`` the largest
    fall of any user below the shared model, in points (hundredths), ``values_drop_personal``
    below the arm's own shared adapter alone; ``minority_accuracy`` is over pairs; ``by_*`` map
    a name to ``{accuracy, users}``; ``epsilon_record`` and ``delta`` are ``None`` for arms
    without differential privacy.  ``extra`` keeps other fields.
    """

    accuracy: float | None
    ci95: tuple[float, float] | None
    bottom_decile: float | None
    minority_accuracy: float | None
    harmed_share: float | None
    harmed_share_significant: float | None
    values_accuracy: float | None
    values_worst_user: float | None
    epsilon_record: float | None
    delta: float | None
    harmed_share_expected: float | None = None
    pair_accuracy: float | None = None
    minority_ci95: tuple[float, float] | None = None
    mean_margin: float | None = None
    values_drop_worst: float | None = None
    values_drop_personal: float | None = None
    length_shift_words: float | None = None
    accuracy_unfederated: float | None = None
    users: int | None = None
    by_group: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_context: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_mapping(name: str, values: Mapping[str, Any]) -> ArmResult:
        """Check one arm's measures and type them.

        Raises ``DataError`` for an unknown arm, a missing field, a share outside [0, 1], an
        interval that is none, or an epsilon that does not fit the arm's name.
        """
        if name not in ARM_ORDER:
            raise DataError(f"arms: unknown arm {name!r}; known: {', '.join(ARM_ORDER)}")
        missing = [key for key in REQUIRED if key not in values]
        if missing:
            raise DataError(f"arms.{name}: missing {', '.join(missing)}; give None where one does not apply")
        known = {item.name for item in fields(ArmResult)} - {"extra"}
        typed = {key: _typed(f"arms.{name}.{key}", key, values[key]) for key in known & set(values)}
        arm = ArmResult(**typed, extra={key: values[key] for key in values if key not in known})
        _check_privacy(name, arm)
        return arm

    def to_mapping(self) -> dict[str, Any]:
        """The arm as ``report.json`` holds it: all fields flat, extra ones beside them."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {**own, **self.extra}


@dataclass(frozen=True)
class PopulationSummary:
    """Who was measured.

    ``simulated``: whether the users' choices come from a program (then no gain proves
    anything about people).  ``records``: number of records by split name.
    """

    name: str
    about: str
    users: int
    federated_users: int
    texts: int
    records: Mapping[str, int]
    contexts: tuple[str, ...] = ()
    simulated: bool = True


@dataclass(frozen=True)
class Results:
    """Everything that a report is built from.

    ``arms`` (texts that others' training records contain) and ``arms_unseen`` (texts in
    nobody's) map arm names to measures, as ``ArmResult`` or as plain mappings that are checked
    here; ``references`` likewise map a simple method's name to ``{accuracy, pair_accuracy,
    bottom_decile, minority_accuracy}``.  ``bytes_per_user_round``: arm to ``{up, down}``,
    bytes as serialised.  ``seconds``: ``prepare``, ``train`` (arm to seconds), ``evaluate``,
    ``report``, ``total``.  ``privacy``: arm to ``{epsilon_record, delta, unit, relation,
    sigma_shared, sigma_personal, shared_steps, personal_steps, sampling_rate, clip}``.
    ``users``: columns of one length, one row a user, with ``user_id``, ``group``, and for each
    arm ``accuracy_<arm>``, ``minority_accuracy_<arm>``, ``accuracy_unseen_<arm>`` where
    measured (NaN: no such pair).  ``curves``: arm to rows ``{round, update_norm, seconds,
    replies, rejected}``.  The column ``minority_pairs``, where given, weighs each user's
    ``minority_accuracy_<arm>``, so that it adds up to the arm's figure over pairs.
    """

    config: Mapping[str, Any]
    population: PopulationSummary
    arms: Mapping[str, ArmResult | Mapping[str, Any]]
    arms_unseen: Mapping[str, ArmResult | Mapping[str, Any]] = field(default_factory=dict)
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    references_unseen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bytes_per_user_round: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    users: Mapping[str, Sequence[Any] | npt.NDArray[Any]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise DataError("arms: empty; a report needs at least one evaluated arm")
        object.__setattr__(self, "arms", _arms(self.arms))
        object.__setattr__(self, "arms_unseen", _arms(self.arms_unseen))
        lengths = {name: len(column) for name, column in self.users.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"users: all columns must have one length, got {lengths}")
        for arm in self.arms:
            if arm.endswith("_dp") and arm not in self.privacy:
                raise DataError(f"privacy: no entry for arm {arm!r}; say how its epsilon came about")
        for arm, entry in self.privacy.items():
            missing = [key for key in ("epsilon_record", "delta", "unit", "relation") if key not in entry]
            if missing:
                raise DataError(
                    f"privacy.{arm}: missing {', '.join(missing)}; an epsilon is never shown without them"
                )

    def arm(self, name: str, unseen: bool = False) -> ArmResult | None:
        """The arm of that name, or ``None`` where it was not evaluated."""
        found = (self.arms_unseen if unseen else self.arms).get(name)
        return found if isinstance(found, ArmResult) else None

    def evaluated(self, name: str, unseen: bool = False) -> ArmResult:
        """The arm of that name; raises ``DataError`` where it was not evaluated."""
        found = self.arm(name, unseen)
        if found is None:
            known = ", ".join(arm for arm, _ in self.arm_items(unseen))
            raise DataError(f"arms: {name!r} was not evaluated; there are: {known or 'none'}")
        return found

    def arm_items(self, unseen: bool = False) -> tuple[tuple[str, ArmResult], ...]:
        """(name, arm) of every evaluated arm, in the order of ``ARM_ORDER``."""
        found = ((name, self.arm(name, unseen)) for name in ARM_ORDER)
        return tuple((name, arm) for name, arm in found if arm is not None)

    def private_items(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """(arm, privacy entry) of every evaluated arm with a guarantee."""
        names = (name for name, _ in self.arm_items() if name in self.privacy)
        return tuple((n, self.privacy[n]) for n in names if self.privacy[n]["epsilon_record"] is not None)

    def column(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """A numeric column of the users' table as float64 [users], ``None`` where absent."""
        if name not in self.users:
            return None
        return np.array([np.nan if value is None else float(value) for value in self.users[name]])


def jsonable(value: Any) -> Any:
    """``value`` as plain JSON types; NaN and infinities become ``None``.

    Raises ``DataError`` for a type that JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    raise DataError(f"report.json: cannot hold a {type(value).__name__} ({value!r}); pass numbers or text")


def _arms(arms: Mapping[str, ArmResult | Mapping[str, Any]]) -> dict[str, ArmResult]:
    typed = {
        name: ArmResult.from_mapping(name, arm.to_mapping() if isinstance(arm, ArmResult) else arm)
        for name, arm in arms.items()
    }
    return {name: typed[name] for name in ARM_ORDER if name in typed}


_SHARES = frozenset(
    {
        "accuracy",
        "pair_accuracy",
        "bottom_decile",
        "minority_accuracy",
        "harmed_share",
        "harmed_share_significant",
        "harmed_share_expected",
        "values_accuracy",
        "values_worst_user",
        "accuracy_unfederated",
    }
)


def _typed(where: str, key: str, value: Any) -> Any:
    if key.startswith("by_"):
        return dict(value or {})
    if value is None:
        return None
    if key in ("ci95", "minority_ci95"):
        return _interval(where, value)
    if key == "users":
        return int(value)
    number = _number(where, value)
    if number is not None and key in _SHARES and not 0.0 <= number <= 1.0:
        raise DataError(f"{where}={number!r}: must be a fraction in [0, 1]; divide percentages by 100")
    return number


def _number(where: str, value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}={value!r}: must be a number or None") from error
    return number if math.isfinite(number) else None


def _interval(where: str, value: Any) -> tuple[float, float] | None:
    ends = [_number(where, end) for end in value]
    if len(ends) != 2:
        raise DataError(f"{where}={value!r}: must be (low, high) or None")
    low, high = ends
    if low is None or high is None:
        return None
    if low > high:
        raise DataError(f"{where}={value!r}: low end above high end; swap them")
    return (low, high)


def _check_privacy(name: str, arm: ArmResult) -> None:
    private = name.endswith("_dp")
    if private and (arm.epsilon_record is None or arm.delta is None):
        raise DataError(
            f"arms.{name}: epsilon_record={arm.epsilon_record!r}, delta={arm.delta!r}; "
            "an arm with differential privacy must state both"
        )
    if not private and arm.epsilon_record is not None:
        raise DataError(
            f"arms.{name}.epsilon_record={arm.epsilon_record!r}: an arm trained without differential "
            "privacy has no guarantee; give None, or name the arm with _dp"
        )
