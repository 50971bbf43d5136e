"""Which setting a training should use: what the service says, else what it said last, else the fallback."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tuner.errors import TunerError
from tuner.inline.answer_cache import AnswerCache
from tuner.inline.asking import Address, NoAnswerError, ask
from tuner.inline.errors import CliptuneWarning
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting

#: Frames from the warning to the caller of `tuner.inline.Clipper.recommended`.
_STACK = 5


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked about.

    Attributes:
        workload: its name.
        parameters: those that an answer must agree with; None takes any.
    """

    workload: str
    parameters: Mapping[str, ParameterValue] | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A setting to train with.

    Attributes:
        setting: it.
        reference_norm: median gradient norm that the study's probe measured; None if it was not told.
    """

    setting: ClipSetting
    reference_norm: float | None = None


def recommended_setting(
    query: Query, *, fallback: ClipSetting, url: str | None, api_key: str | None, timeout: float
) -> Advice:
    """Ask once; see `tuner.inline.Clipper.recommended`.

    Args:
        query: what is asked about.
        fallback: the setting without an answer and without a cached one.
        url: see `Address.resolve`.
        api_key: see `Address.resolve`.
        timeout: longest wait, in seconds.

    Returns:
        What to train with; where it is not what the service said just now, a `CliptuneWarning` has told why.
    """
    address = Address.resolve(url, api_key)
    question = f"{address.url}/v1/recommendations?{urlencode({'workload': query.workload})}"
    cache = AnswerCache(question)
    kept = cache.read()
    try:
        known = None if kept is None else read_advice(kept.document, query)
    except NoAnswerError:
        known = None
    etag = kept.etag if kept is not None and known is not None else ""
    try:
        answer = ask(question, api_key=address.api_key, etag=etag, timeout=timeout)
        if answer.body is None and known is not None:
            return _told(known)
        document = _parsed(answer.body or b"")
        found = read_advice(document, query)
    except NoAnswerError as error:
        if known is not None and kept is not None:
            _warn(f"{error}; training with {known.setting}, the answer kept at {kept.kept_at}")
            return _told(known)
        _warn(f"{error}; training with the fallback {fallback}")
        return Advice(setting=fallback)
    cache.write(answer.etag, document)
    return _told(found)


def read_advice(document: Any, query: Query) -> Advice:
    """What an answer says to do; anything can stand in it.

    Args:
        document: JSON values.
        query: what was asked.

    Returns:
        The setting.

    Raises:
        NoAnswerError: if it is no answer, or none to train by.

    Example:
        >>> found = {"verdict": "clip", "setting": {"method": "global_norm", "threshold": 0.35}}
        >>> read_advice({"match": "exact", "recommendation": found}, Query(workload="w")).setting
        ClipSetting(method='global_norm', threshold=0.35, learning_rate_scale=1.0)
    """
    if not isinstance(document, dict) or not isinstance(document.get("match"), str):
        raise NoAnswerError("the answer is not one of Cliptune's")
    found = document.get("recommendation")
    if not isinstance(found, dict):
        raise NoAnswerError(f"there is no recommendation for it ({document.get('reason')})")
    if found.get("verdict") == "inconclusive":
        raise NoAnswerError(f"the study of {query.workload!r} is inconclusive ({found.get('reason')})")
    _require_same_parameters(found.get("parameters"), query)
    try:
        setting, norm = _setting(found["setting"]), _norm(found.get("reference_norm"))
    except (TunerError, KeyError, TypeError, ArithmeticError) as error:
        raise NoAnswerError(f"the recommended setting can't be read ({error!r})") from error
    return Advice(setting=setting, reference_norm=norm)


def _require_same_parameters(theirs: Any, query: Query) -> None:
    for name, value in (query.parameters or {}).items():
        there = theirs.get(name) if isinstance(theirs, dict) else None
        if there != value:
            raise NoAnswerError(
                f"what is recommended for {query.workload!r} was found with {name}={there!r}, and here it is {value!r}"
            )


def _setting(document: Mapping[str, Any]) -> ClipSetting:
    threshold, factor = document["threshold"], document.get("learning_rate_scale", 1.0)
    return ClipSetting(
        method=document["method"],
        threshold=None if threshold is None else _number(threshold),
        learning_rate_scale=_number(factor),
    )


def _norm(value: Any) -> float | None:
    is_norm = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if is_norm else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswerError(f"the answer is not JSON ({type(error).__name__})") from error


def _told(advice: Advice) -> Advice:
    """The advice; what a clipper can't do about it is said."""
    factor = advice.setting.learning_rate_scale
    if factor != 1:
        _warn(
            f"{advice.setting} was found with {factor:g} times the workload's learning rate: multiply yours by "
            "clipper.setting.learning_rate_scale"
        )
    return advice


def _warn(text: str) -> None:
    warnings.warn(CliptuneWarning(text), stacklevel=_STACK)
