"""Numbers and method names as a newcomer reads them; shared by the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "\N{EN DASH}"
"""Shown where a value does not apply or was not measured."""

ARM_ABOUT: Mapping[str, str] = {
    "base": "the language model as it comes, before any training on these users",
    "shared": "one adapter learned from all users together; the same for everybody",
    "local": "each user's adapter learned on the device from that user's records alone",
    "dual": "the shared adapter plus each user's personal one, which never leaves the device",
    "shared_dp": "as shared, trained with differential privacy (DP)",
    "local_dp": "as local, trained with DP",
    "dual_dp": "as dual, both adapters trained with DP",
}
"""One line on each arm."""

_NAMES: Mapping[str, str] = {
    "shared_dp": "shared with DP",
    "local_dp": "local with DP",
    "dual_dp": "dual with DP",
    "text_mean": "mean of each text",
    "tfidf_global": "word counts, same for all",
    "tfidf_user": "word counts, by user",
}


def name(key: str) -> str:
    """The readable name of an arm, a reference method, or any key."""
    if key.startswith("matrix_factorization"):
        rank = key.rpartition("_k")[2]
        return "matrix factorization" + (f", K = {rank}" if rank.isdigit() else "")
    return _NAMES.get(key, key.replace("_", " "))


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal: 0.8153 is ``81.5%``."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def points(value: float | None, signed: bool = True) -> str:
    """A difference of fractions in percentage points: 0.077 is ``+7.7 points``."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{number(100 * value, 1, signed)} points"


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A number with fixed decimals and a true minus sign; what rounds to zero has no sign."""
    if value is None or math.isnan(value):
        return MISSING
    text = f"{abs(value):,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+" if signed else "") + text


def interval(ends: tuple[float, float] | None, signed: bool = False) -> str:
    """An interval of fractions: ``72.9 to 74.7``."""
    if ends is None:
        return MISSING
    return f"{number(100 * ends[0], 1, signed)} to {number(100 * ends[1], 1, signed)}"


def size(count: float | None) -> str:
    """Bytes with a decimal unit: 12345 is ``12.3 kB``."""
    if count is None or math.isnan(count):
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds for a reader: ``4.2 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def compact(value: float | None) -> str:
    """A number in its shortest form: ``0.2``, ``1e-5``."""
    return MISSING if value is None else f"{value:g}".replace("e-0", "e-")


ADVERSARIES = {
    "server": "the server",
    "public": "the public, other users too",
    "device": "whoever has the device",
}
"""Each view of ``fl_core.guarantees`` in words."""


def guarantee(entry: Mapping[str, Any]) -> str:
    """An epsilon as it may be shown: with delta, unit and neighbouring relation."""
    return (
        f"ε = {entry['epsilon_record']:.2f} at δ = {compact(entry['delta'])}, "
        f"unit: one {entry['unit']}, relation: {entry['relation']}"
    )
