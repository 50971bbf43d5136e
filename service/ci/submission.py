"""A submission that a pipeline may repeat: the question, and the key that finds the same study again. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from service.ci.gather import Value
from service.ci.judging import checked
from service.ci.origin import Origin
from tuner.errors import SpecError
from tuner.spec import study_spec

#: Of the parts that a key is made of; another order, or another part, is another number.
_KEY_VERSION = 1
#: What a study searches unless it says otherwise.
_METHODS = ("global_norm",)


def idempotency_key(origin: Origin, question: Mapping[str, Any], recipe: str, nonce: str = "") -> str:
    """The key of a submission: equal for the same question about the same code to the same version of the service.

    Args:
        origin: repository and commit.
        question: fields of a study; one that is left out counts as its default.
        recipe: version of the service, which decides how a study is carried out.
        nonce: makes another key of the same.

    Returns:
        64 hexadecimal characters.

    Example:
        >>> origin = Origin("team/model", "0f5a1b2c")
        >>> short, long = {"workload": "w"}, {"workload": "w", "num_trials": 16}
        >>> idempotency_key(origin, short, "0.1.0") == idempotency_key(origin, long, "0.1.0")
        True
    """
    parts = [_KEY_VERSION, origin.repository, origin.commit, _canonical(question), recipe, nonce]
    # NaN has no canonical form, and none is needed: the service refuses the question.
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_current(question: Mapping[str, Any], values: Iterable[Value]) -> dict[str, Any]:
    """A question that compares with what the first config has now.

    Args:
        question: fields of a study.
        values: of configs, in the caller's order.

    Returns:
        The same fields, and ``current`` unless the question names one, or the value is none that its methods have:
        another kind, *off* (which every study tries), or no number.
    """
    first = next(iter(values), None)
    if first is None or question.get("current") is not None:
        return dict(question)
    setting = checked(first, None).setting
    methods = question.get("methods") or _METHODS
    if (
        setting is None
        or setting.is_off
        or not isinstance(methods, list | tuple)
        or setting.method not in methods
    ):
        return dict(question)
    return {**question, "current": {"method": setting.method, "threshold": setting.threshold}}


def _canonical(question: Mapping[str, Any]) -> Mapping[str, Any]:
    """A question with its defaults written out; one that is not valid as it is, for the service to refuse."""
    fields = {key: value for key, value in question.items() if key != "name"}
    try:
        return {**study_spec(fields).to_json(), "name": question.get("name")}
    except (SpecError, TypeError, ValueError, AttributeError):
        return question
