"""A scenario file, options of the command line and defaults become one configuration.

A scenario is TOML: the settings of ``fl_core.config.RunConfig`` (nested tables, hyphens or
underscores), ``source`` as another name of ``population``, and the tables ``[world]`` and
``[splits]`` for the source.  Options win over the scenario, the scenario over the defaults.
Relative paths are relative to the working directory.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fl_core.config import ArmName, RunConfig, merged, validated
from fl_core.errors import ConfigurationError

SOURCE_TABLES = ("world", "splits")
ALL_ARMS: tuple[str, ...] = get_args(ArmName)
PRIVATE = "_dp"


@dataclass(frozen=True)
class Scenario:
    """What one simulation is asked to do: the run's configuration and the source's tables."""

    config: RunConfig = field(default_factory=RunConfig)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What decides the result, as ``config.json`` keeps it; ``out`` does not."""
        flat = {key: value for key, value in self.config.to_flat().items() if key != "out"}
        return {"config": flat, "tables": {name: dict(table) for name, table in self.tables.items()}}


def read_scenario(path: Path | None, options: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario at ``path`` (``None``: no file) overlaid by ``options`` (nested).

    Where neither names arms all are run, those with differential privacy only if
    ``privacy.epsilon`` is positive.  Raises ``ConfigurationError`` naming each wrong setting.
    """
    given = merged(_read(path) if path else {}, underscored(options or {}))
    tables = {name: _table(name, given.pop(name)) for name in SOURCE_TABLES if name in given}
    asked_for_arms = "arms" in given
    values = merged(RunConfig().model_dump(), given)
    config = validated(RunConfig, values, known=tuple(RunConfig().to_flat()))
    if not asked_for_arms:
        config = config.model_copy(update={"arms": ",".join(arms_without_asking(config))})
    _check_privacy(config)
    return Scenario(config, tables)


def arms_without_asking(config: RunConfig) -> tuple[str, ...]:
    """All arms, without those that the privacy settings leave nothing private in."""
    left_out = {"shared_dp"} if config.privacy.scope == "personal" else set()
    wanted = (arm for arm in ALL_ARMS if config.privacy.epsilon > 0 or not arm.endswith(PRIVATE))
    return tuple(arm for arm in wanted if arm not in left_out)


def nested_options(assignments: Iterable[str]) -> dict[str, Any]:
    """``["train.inner-lr=0.1", "world.groups=3"]`` as nested settings.

    A value is read as TOML (number, true, false, quoted text); anything else is text.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"set {assignment!r}: write key=value, such as train.inner-lr=0.1")
        inner = nested
        *tables, last = key.strip().replace("-", "_").split(".")
        for name in tables:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"set {assignment!r}: {name!r} is a setting, not a table")
        inner[last] = _value(value.strip())
    return nested


def underscored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with underscores for hyphens, in all tables; ``source`` becomes ``population``."""
    named = {key.replace("-", "_"): value for key, value in values.items()}
    if "source" in named:
        named.setdefault("population", named.pop("source"))
    return {key: underscored(item) if isinstance(item, Mapping) else item for key, item in named.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return underscored(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"scenario {str(path)!r}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"scenario {str(path)!r}: is no valid TOML ({error})") from error


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name}={value!r}: is a table; write [{name}] and its settings below")
    return value


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _check_privacy(config: RunConfig) -> None:
    private = [arm for arm in config.arm_names if arm.endswith(PRIVATE)]
    if private and config.privacy.epsilon == 0:
        raise ConfigurationError(
            f"arms={config.arms!r} with privacy.epsilon=0: {private[0]!r} needs a positive epsilon; "
            "give one or leave the arm out"
        )
