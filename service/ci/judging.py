"""From a value of a config and an answer to a judgement: what `verdict` decides on, filled in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from service.ci.config import Config, propose
from service.ci.errors import ConfigError
from service.ci.framework import METHODS
from service.ci.gather import Value
from service.ci.recommended import Recommended
from service.ci.target import Answer
from service.ci.verdict import Checked, CheckVerdict, Drift, FailOn, Judgement, judge
from tuner.errors import SpecError
from tuner.spec import OFF_SETTING, ClipSetting


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the caller makes of a verdict; see `service.ci.verdict.judge`.

    Attributes:
        fail_on: the mildest verdict that fails.
        tolerance: share by which the recommended range is widened; None leaves it as it is.
        stale_after_days: age from which on a recommendation is stale; None never.
    """

    fail_on: FailOn = "outside"
    tolerance: float | None = None
    stale_after_days: int | None = None


def judge_value(
    value: Value, answer: Answer, rules: Rules, now: datetime, drift: Drift | None = None
) -> Judgement:
    """Judge a value of a config.

    Args:
        value: what was found.
        answer: what it is judged by.
        rules: the caller's.
        now: aware.
        drift: what a probe showed; None if none was run.

    Returns:
        The verdict.

    Raises:
        CheckRuleError: if a rule is out of bounds.
    """
    return judge(
        checked(value, answer.recommendation),
        answer.recommendation,
        now=now,
        tolerance=rules.tolerance,
        fail_on=rules.fail_on,
        stale_after_days=rules.stale_after_days,
        drift=drift,
        reason_without=answer.reason,
    )


def applied_setting(value: Value, answer: Answer, now: datetime) -> tuple[ClipSetting | None, str]:
    """What to write in the place of a value.

    Args:
        value: what was found.
        answer: what is recommended.
        now: aware.

    Returns:
        The setting, and an empty text; or None, and why the value had better stay: nothing is recommended, the study
        has not settled, or clipping makes no difference and the value does no harm.
    """
    judgement = judge_value(value, answer, Rules(), now)
    recommendation = answer.recommendation
    is_settled = judgement.verdict not in (CheckVerdict.NO_DIFFERENCE, CheckVerdict.INCONCLUSIVE)
    if recommendation is None or not is_settled:
        return None, judgement.sentence
    return recommendation.setting, ""


def checked(value: Value, recommendation: Recommended | None) -> Checked:
    """A value as it is judged.

    Args:
        value: what was found.
        recommendation: what it will be judged by: whether *off* has to be spelled depends on it.

    Returns:
        The same values in the words of a report.
    """
    located = value.config.located
    obstacle = ""
    try:
        setting = located.setting
    except SpecError as error:
        setting, obstacle = None, f"no study tries such a threshold: it {error.reason}"
    if setting is None and not obstacle:
        obstacle = _obstacle(value)
    is_off_recommended = recommendation is not None and recommendation.setting.is_off
    return Checked(
        file=value.file,
        line=located.line,
        column=located.column,
        framework=located.framework.title if located.framework else None,
        key=located.key,
        spelled=located.spelled,
        setting=setting,
        is_implicit=located.is_implicit,
        off_spelled=_off_spelled(value.config) if is_off_recommended else "off",
        obstacle=obstacle,
    )


def _obstacle(value: Value) -> str:
    """Why a value is no setting of a study."""
    located = value.config.located
    if located.kind is None:
        return f"what {located.key} limits is not known: name the framework with --framework"
    if METHODS[located.kind] is None:
        return "it limits each tensor on its own to one norm, which no method of a study does"
    return f"{located.spelled} is no threshold: it has to be > 0, and off is written otherwise here"


def _off_spelled(config: Config) -> str:
    """What `cliptune apply` would write for *off*; the word where a token can't say it."""
    try:
        return propose(config, OFF_SETTING, add=True).written or "off"
    except ConfigError:
        return "off"
