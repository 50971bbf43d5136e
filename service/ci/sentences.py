"""The words of a verdict: every number with what it is, its uncertainty and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.ci.judgement import Checked, CheckVerdict, Drift, Evidence
from service.ci.recommended import Recommended
from service.ci.spelling import spell_number
from tuner.evidence import Verdict
from tuner.methods import get_method
from tuner.spec import ClipSetting

TITLES: Mapping[CheckVerdict, str] = {
    CheckVerdict.INSIDE: "clip threshold as recommended",
    CheckVerdict.OUTSIDE: "clip threshold outside the recommended range",
    CheckVerdict.REGRESSION: "clip threshold worse than recommended",
    CheckVerdict.DRIFT: "clip recommendation no longer fits the code",
    CheckVerdict.NO_DIFFERENCE: "clipping makes no difference here",
    CheckVerdict.INCONCLUSIVE: "clip threshold not settled",
    CheckVerdict.NO_RECOMMENDATION: "clip threshold not judged",
}
#: The same where *off* is recommended.
_OFF_TITLES: Mapping[CheckVerdict, str] = {
    CheckVerdict.INSIDE: "clipping off, as recommended",
    CheckVerdict.OUTSIDE: "clipping on, though off is recommended",
    CheckVerdict.REGRESSION: "clipping on, and worse than off",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a sentence is made of.

    Attributes:
        checked: the value.
        recommendation: what it was judged by.
        low: lowest recommended threshold; None where *off* is recommended.
        high: highest, likewise.
        evidence: what the study measured of the value; None if nothing.
        why: why nothing could be compared; empty if it could.
        drift: what a probe showed; None if none was run.
        stale: age of the recommendation and the age that is allowed, in days; None if it is not stale.
    """

    checked: Checked
    recommendation: Recommended
    low: float | None
    high: float | None
    evidence: Evidence | None
    why: str
    drift: Drift | None
    stale: tuple[int, int] | None


def title(verdict: CheckVerdict, recommendation: Recommended) -> str:
    """The verdict in a few words.

    Args:
        verdict: of the check.
        recommendation: what it rests on.

    Returns:
        The words, without an end.
    """
    titles = _OFF_TITLES if recommendation.verdict is Verdict.DO_NOT_CLIP else TITLES
    return titles.get(verdict, TITLES[verdict])


def sentence(verdict: CheckVerdict, facts: Facts) -> str:
    """The verdict with its figures.

    Args:
        verdict: of the check.
        facts: the figures.

    Returns:
        Two to five sentences.
    """
    if verdict is CheckVerdict.NO_RECOMMENDATION:
        parts = [unjudged(facts.checked, facts.why)]
    else:
        parts = [_FIRST[verdict](facts)]
    if verdict in (CheckVerdict.OUTSIDE, CheckVerdict.REGRESSION):
        parts += _measured(facts)
    if facts.drift is not None and verdict is not CheckVerdict.DRIFT:
        parts.append(f"{_fitting(facts.drift)}: {_ended(facts.drift.reason)}")
    parts.append(source(facts.recommendation))
    if facts.stale is not None:
        age, allowed = facts.stale
        parts.append(f"That is {age} days ago, more than the {allowed} allowed: run the study again.")
    return " ".join(parts)


def unjudged(checked: Checked, why: str) -> str:
    """Why a value has no verdict.

    Args:
        checked: the value.
        why: the end of the sentence.

    Returns:
        A sentence.
    """
    return f"{subject(checked)} was not judged: {_ended(why)}"


def subject(checked: Checked) -> str:
    """A value as the first words of a sentence.

    Args:
        checked: the value.

    Returns:
        The key with what it is set to, and that it is a default where it is not set.

    Example:
        >>> subject(Checked(file="a.yaml", line=1, column=1, framework="Keras", key="clipnorm", spelled="1.0",
        ...     setting=None, is_implicit=True))
        'clipnorm (not set: the default of Keras is 1.0)'
    """
    if checked.is_implicit:
        whose = f" of {checked.framework}" if checked.framework else ""
        return f"{checked.key} (not set: the default{whose} is {checked.spelled})"
    is_off = checked.setting is not None and checked.setting.is_off
    meaning = " (off)" if is_off and checked.spelled != "off" else ""
    return f"{checked.key} {checked.spelled or 'without a value'}{meaning}"


def spelled(setting: ClipSetting, checked: Checked) -> str:
    """A setting as it would be written in the place of a value.

    Args:
        setting: the setting.
        checked: the value, whose framework has a spelling of *off*.

    Returns:
        The number with three digits, or the spelling of *off*.
    """
    return checked.off_spelled if setting.threshold is None else spell_number(setting.threshold)


def number(value: float) -> str:
    """A threshold as it was judged: six digits of a bound, and of a value all that a config has."""
    return f"{value:.12g}"


def _range(low: float, high: float, setting: ClipSetting) -> str:
    """The recommended range with its unit; a point where the study has no interval."""
    unit = get_method(setting.method).threshold_unit
    if low == high:
        return f"{number(low)}, in units of the {unit}; the study has no interval"
    return f"{number(low)} to {number(high)}, in units of the {unit}"


def _inside(facts: Facts) -> str:
    if facts.low is None or facts.high is None:
        return f"{subject(facts.checked)} is what is recommended: {_ended(facts.recommendation.reason)}"
    good = _range(facts.low, facts.high, facts.recommendation.setting)
    return f"{subject(facts.checked)} is within the recommended {good}."


def _outside(facts: Facts) -> str:
    use = spelled(facts.recommendation.setting, facts.checked)
    if facts.low is None or facts.high is None:
        reason = _ended(facts.recommendation.reason)
        return f"{subject(facts.checked)} clips, but off is recommended: use {use}. {reason}"
    good = _range(facts.low, facts.high, facts.recommendation.setting)
    return f"{subject(facts.checked)} is outside the recommended {good}: use {use}."


def _regression(facts: Facts) -> str:
    if facts.recommendation.verdict is Verdict.NO_DIFFERENCE:
        use = spelled(facts.recommendation.setting, facts.checked)
        return (
            f"{subject(facts.checked)} is a threshold that hurts, where clipping at a good one makes no difference: "
            f"use {use}."
        )
    if facts.checked.setting is not None and facts.checked.setting.is_off:
        use = spelled(facts.recommendation.setting, facts.checked)
        reason = _ended(facts.recommendation.reason)
        return f"{subject(facts.checked)} leaves out clipping, which helps here: use {use}. {reason}"
    return _outside(facts)


def _drift(facts: Facts) -> str:
    reason = _ended(facts.drift.reason) if facts.drift is not None else ""
    return (
        f"{subject(facts.checked)} can't be judged by a recommendation that does not fit the code as it is now: "
        f"{reason} Run the study again."
    )


def _fitting(drift: Drift) -> str:
    if not drift.is_settled:
        return "Whether the recommendation fits the code as it is now is open"
    verb = "does not fit" if drift.has_drifted else "fits"
    return f"The recommendation {verb} the code as it is now"


def _no_difference(facts: Facts) -> str:
    return (
        f"{subject(facts.checked)} is as good as any: clipping makes no difference here. "
        f"{_ended(facts.recommendation.reason)}"
    )


def _inconclusive(facts: Facts) -> str:
    more = facts.recommendation.more_seeds
    remedy = (
        ""
        if more is None
        else f"; about {more} further fresh seeds would settle it: cliptune extend "
        f"{facts.recommendation.study_id[:8]} --seeds {more}"
    )
    # Without a number of seeds, the study's own reason says what would help, or that nothing reasonable does.
    reason = _ended(facts.recommendation.reason)
    return f"{subject(facts.checked)} can't be judged yet: the study has not settled it{remedy}. {reason}"


_FIRST: Mapping[CheckVerdict, Callable[[Facts], str]] = {
    CheckVerdict.INSIDE: _inside,
    CheckVerdict.OUTSIDE: _outside,
    CheckVerdict.REGRESSION: _regression,
    CheckVerdict.DRIFT: _drift,
    CheckVerdict.NO_DIFFERENCE: _no_difference,
    CheckVerdict.INCONCLUSIVE: _inconclusive,
}


def _measured(facts: Facts) -> list[str]:
    """By how much the value is worse, as far as the study can say; *off* it has always measured."""
    evidence, setting = facts.evidence, facts.checked.setting
    if evidence is None:
        is_off = setting is not None and setting.is_off
        return [] if is_off else ["The study measured neither this value nor one near it."]
    named = "It" if evidence.is_exact else f"The nearest value measured, {evidence.setting},"
    if not evidence.num_diverged:
        return [f"{named} {_compared(evidence, facts.recommendation)}"]
    total = evidence.num_seeds + evidence.num_diverged
    diverged = f"{named} diverged in {evidence.num_diverged} of {total} seeds."
    if not evidence.num_seeds:
        return [diverged]
    return [diverged, f"In the others it {_compared(evidence, facts.recommendation)}"]


def _compared(evidence: Evidence, recommendation: Recommended) -> str:
    baseline = "off" if evidence.baseline.is_off else str(evidence.baseline)
    if evidence.mean is None or evidence.low is None or evidence.high is None:
        return f"has too few seeds in common with {baseline} to compare them."
    margin = "" if recommendation.margin is None else f"; {recommendation.margin:.3g} would matter"
    return (
        f"ends at a {recommendation.objective} {_amount(evidence.mean)} than {baseline} (95 % interval of the "
        f"difference {evidence.low:+.3g} to {evidence.high:+.3g}, {evidence.num_pairs} paired "
        f"{'fresh' if evidence.is_fresh else 'search'} seeds{margin})."
    )


def _amount(mean: float) -> str:
    return f"{abs(mean):.3g} {'worse' if mean >= 0 else 'better'}"


def source(recommendation: Recommended) -> str:
    """Where a recommendation comes from.

    Args:
        recommendation: of a study.

    Returns:
        A sentence.
    """
    version = f" version {recommendation.version}" if recommendation.version > 1 else ""
    plural = "" if recommendation.num_seeds == 1 else "s"
    return (
        f"Study {recommendation.study_id[:8]}{version} of {recommendation.workload}, {recommendation.num_seeds} "
        f"seed{plural}, {recommendation.created_at:%Y-%m-%d}."
    )


def _ended(text: str) -> str:
    """A sentence's end, with its full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
