"""How figures are written: significant digits, signs, units, and the uncertainty beside each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from service.report.intervals import mean_interval
from service.report.markup import MINUS, NONE, PLUS_MINUS, TIMES, TO
from tuner.evidence import Estimate, FailureRate, PairedDifference
from tuner.methods import get_method
from tuner.spec import ClipSetting


def number(value: float | None, digits: int = 4) -> str:
    """A figure with this many significant digits; a dash for None.

    Example:
        >>> number(1.8), number(0.25, 2), number(None) == NONE
        ('1.800', '0.25', True)
    """
    if value is None:
        return NONE
    return f"{value:#.{digits}g}".rstrip(".").replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A figure whose sign is always written."""
    return ("+" if value >= 0 else "") + number(value, digits)


def threshold(value: float | None) -> str:
    """A threshold as it is pasted: no digits added."""
    return NONE if value is None else f"{value:g}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage; small ones keep a digit.

    Example:
        >>> percent(0.06), percent(0.004), percent(0.0), percent(1.0)
        ('6 %', '0.4 %', '0 %', '100 %')
    """
    if share is None:
        return NONE
    text = f"{share:.1%}" if 0 < share < 0.01 or 0.99 < share < 1 else f"{share:.0%}"
    return text.replace("%", " %")


def between(low: float, high: float, digits: int = 4) -> str:
    """An interval in brackets, which minus signs can't be confused with."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def span(low: float, high: float) -> str:
    """A range of thresholds."""
    return threshold(low) if low == high else f"{low:g} {TO} {high:g}"


def setting_words(setting: ClipSetting) -> str:
    """A setting for people: method, the threshold's name, and the learning rate where it was changed.

    Example:
        >>> setting_words(ClipSetting(method="global_norm", threshold=0.5))
        'global_norm, max_norm = 0.5'
    """
    words = "off (no clipping)"
    if not setting.is_off:
        words = f"{setting.method}, {get_method(setting.method).threshold_name} = {setting.threshold:g}"
    if setting.learning_rate_scale != 1:
        words += f", learning rate {TIMES} {setting.learning_rate_scale:g}"
    return words


def role_words(role: str, setting: ClipSetting) -> str:
    """A setting and why it is shown.

    Example:
        >>> role_words("best", ClipSetting(method="value", threshold=0.5))
        'best: value, clip_value = 0.5'
        >>> role_words("off", ClipSetting(method="none"))
        'off (no clipping)'
    """
    return setting_words(setting) if role == "off" else f"{role}: {setting_words(setting)}"


def estimate_words(found: Estimate | None) -> str:
    """An objective over seeds with its standard error."""
    if found is None or (found.mean is None and not found.num_diverged):
        return "no result"
    num_lanes = found.num_seeds + found.num_diverged
    if found.mean is None:
        return f"diverged in all {num_lanes} seeds"
    error = "" if found.standard_error is None else f" {PLUS_MINUS} {number(found.standard_error, 2)}"
    lost = f" ({found.num_diverged} of {num_lanes} seeds diverged)" if found.num_diverged else ""
    return f"{number(found.mean)}{error}{lost}"


def estimate_interval(found: Estimate | None) -> str:
    """The 95 % interval of an estimate's mean, and on how many seeds it rests."""
    if found is None or found.mean is None:
        return NONE
    interval = mean_interval(found.mean, found.standard_error, found.num_seeds)
    seeds = f"{found.num_seeds} seed{'s' * (found.num_seeds != 1)}"
    return f"{seeds}, no interval" if interval is None else f"{between(*interval)}, {seeds}"


def difference_words(found: PairedDifference | None) -> str:
    """A paired difference; negative favours the setting that is compared."""
    return NONE if found is None else signed(found.mean)


def difference_interval(found: PairedDifference | None) -> str:
    """The interval of a paired difference, and how it was judged."""
    if found is None:
        return NONE
    text = f"[{signed(found.low)}, {signed(found.high)}], {found.num_pairs} paired seeds, {found.test}"
    return text if found.p_value is None else f"{text}, p = {found.p_value:.2g}"


def failure_words(found: FailureRate | None) -> str:
    """How many lanes failed."""
    return NONE if found is None else f"{found.num_failed} of {found.num_lanes} runs"


def failure_interval(found: FailureRate | None) -> str:
    """The 95 % interval of the probability."""
    return NONE if found is None else f"{percent(found.low)} {TO} {percent(found.high)}"


def moment(when: datetime | None) -> str:
    """A time to the second, in UTC."""
    return NONE if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def flattened(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as rows of dotted names and values.

    Example:
        >>> flattened({"a": {"b": 1}, "c": [1, 2], "d": None})
        [('a.b', '1'), ('c', '[1, 2]'), ('d', 'null')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            rows += flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows
