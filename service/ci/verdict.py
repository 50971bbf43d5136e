"""How a config's clip value stands to a recommendation: pure, the one place that decides.

A value is compared with thresholds of its own kind only, and with the ends of the recommended range as they are shown,
so that a report never says that 0.45 is outside 0.28 to 0.45.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from service.ci import sentences
from service.ci.judgement import Checked as Checked
from service.ci.judgement import CheckVerdict as CheckVerdict
from service.ci.judgement import Drift as Drift
from service.ci.judgement import Evidence as Evidence
from service.ci.judgement import Judgement as Judgement
from service.ci.judgement import Severity as Severity
from service.ci.recommended import Measured, Recommended
from service.ci.spelling import spell_number
from service.errors import ServiceError
from tuner.evidence import Verdict
from tuner.methods import get_method
from tuner.spec import OFF_SETTING, ClipSetting

#: From which verdict on a check fails.
FailOn = Literal["outside", "regression", "never"]

#: A trial whose threshold is within this factor of a value says how that value trains.
NEAR = 1.25
#: Seeds that all diverged, from which on that is no accident of one seed.
_MIN_DIVERGED = 2


class CheckRuleError(ServiceError, ValueError):
    """A rule of the check is out of bounds."""

    code = "invalid_check_rule"


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A verdict before the caller's rules: see `Judgement`; ``why`` says why nothing was compared."""

    verdict: CheckVerdict
    low: float | None = None
    high: float | None = None
    evidence: Evidence | None = None
    why: str = ""


def judge(
    checked: Checked,
    recommendation: Recommended | None,
    *,
    now: datetime,
    tolerance: float | None = None,
    fail_on: FailOn = "outside",
    stale_after_days: int | None = None,
    drift: Drift | None = None,
    reason_without: str = "nothing is stored for this workload",
) -> Judgement:
    """Judge one config value.

    Args:
        checked: the value.
        recommendation: what it is judged by, from the service or from a lock; None if there is nothing that fits.
        now: aware; how old the recommendation is depends on it.
        tolerance: share by which the recommended range is widened to both sides, >= 0; None leaves it as it is.
        fail_on: the mildest verdict that fails the check.
        stale_after_days: age from which on a recommendation is stale, >= 0; None never.
        drift: what a probe showed; None if none was run.
        reason_without: why there is no recommendation, as the end of a sentence.

    Returns:
        The verdict with its figures.

    Raises:
        CheckRuleError: if a rule is out of bounds.
    """
    _require_rules(tolerance, fail_on, stale_after_days)
    value = None if checked.setting is None else checked.setting.threshold
    if recommendation is None:
        return Judgement(
            checked=checked,
            verdict=CheckVerdict.NO_RECOMMENDATION,
            severity=Severity.WARNING,
            title=sentences.TITLES[CheckVerdict.NO_RECOMMENDATION],
            sentence=sentences.unjudged(checked, reason_without),
            value=value,
        )
    found = _compare(checked, recommendation, tolerance or 0.0)
    verdict = _with_drift(found.verdict, drift)
    age_days = (now - recommendation.created_at).days
    is_stale = stale_after_days is not None and age_days > stale_after_days
    severity = _severity(verdict, fail_on)
    # The best seen of an unsettled study, or a number of another kind, is nothing to write into this config.
    is_recommended = not found.why and recommendation.verdict is not Verdict.INCONCLUSIVE
    return Judgement(
        checked=checked,
        verdict=verdict,
        severity=Severity.WARNING if is_stale and severity is Severity.OK else severity,
        title=sentences.title(verdict, recommendation),
        sentence=sentences.sentence(
            verdict,
            sentences.Facts(
                checked=checked,
                recommendation=recommendation,
                low=found.low,
                high=found.high,
                evidence=found.evidence,
                why=found.why,
                drift=drift,
                stale=(age_days, stale_after_days) if is_stale and stale_after_days is not None else None,
            ),
        ),
        value=value,
        low=found.low,
        high=found.high,
        recommended=recommendation.setting if is_recommended else None,
        recommended_spelled=sentences.spelled(recommendation.setting, checked) if is_recommended else "",
        evidence=found.evidence,
        margin=recommendation.margin,
        objective=recommendation.objective,
        num_seeds=recommendation.num_seeds,
        more_seeds=recommendation.more_seeds,
        workload=recommendation.workload,
        study_id=recommendation.study_id,
        study_url=recommendation.study_url,
        age_days=max(0, age_days),
        is_stale=is_stale,
    )


def shown(value: float | None) -> float | None:
    """A bound as reports show it, and as values are compared with it.

    Args:
        value: any finite number, or None.

    Returns:
        The number with six significant digits.

    Example:
        >>> shown(0.1 + 0.2), shown(None)
        (0.3, None)
    """
    return None if value is None else float(f"{value:.6g}")


def _require_rules(tolerance: float | None, fail_on: str, stale_after_days: int | None) -> None:
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise CheckRuleError(
            f"tolerance must be a share >= 0, got {tolerance}: 0.1 widens the range by a tenth"
        )
    if fail_on not in get_args(FailOn):
        raise CheckRuleError(f"fail_on must be one of {', '.join(get_args(FailOn))}, got {fail_on!r}")
    if stale_after_days is not None and stale_after_days < 0:
        raise CheckRuleError(f"stale_after_days must be >= 0, got {stale_after_days}: leave it out for never")


def _compare(checked: Checked, recommendation: Recommended, tolerance: float) -> _Comparison:
    """The verdict that the figures support."""
    why = _obstacle(checked, recommendation)
    setting = checked.setting
    if why or setting is None:
        return _Comparison(verdict=CheckVerdict.NO_RECOMMENDATION, why=why)
    low, high = _range(recommendation, tolerance)
    if recommendation.verdict is Verdict.INCONCLUSIVE:
        return _Comparison(verdict=CheckVerdict.INCONCLUSIVE)
    if _is_inside(setting, recommendation, low, high):
        return _Comparison(verdict=CheckVerdict.INSIDE, low=low, high=high)
    evidence = _evidence(setting, recommendation, low, high)
    # A study that answers *clip* has found off to be worse by the margin, by ranks where a mean could not say it.
    is_worse = setting.is_off or _is_worse(evidence, recommendation.margin)
    if recommendation.verdict is Verdict.NO_DIFFERENCE:
        is_worse = not setting.is_off and is_worse
        verdict = CheckVerdict.REGRESSION if is_worse else CheckVerdict.NO_DIFFERENCE
        return _Comparison(verdict=verdict, evidence=evidence)
    verdict = CheckVerdict.REGRESSION if is_worse else CheckVerdict.OUTSIDE
    return _Comparison(verdict=verdict, low=low, high=high, evidence=evidence)


def _obstacle(checked: Checked, recommendation: Recommended) -> str:
    """Why the value can't be compared with the recommendation; empty if it can."""
    mine, theirs = checked.setting, recommendation.setting
    if mine is None:
        return checked.obstacle or "it is no setting of a clipping method that studies try"
    if recommendation.verdict is Verdict.INCONCLUSIVE:
        return ""
    if theirs.learning_rate_scale != 1:
        return (
            f"the recommended {theirs} goes with {theirs.learning_rate_scale:g} times the learning rate: set both, or "
            "run a study that leaves the rate alone"
        )
    tried = recommendation.methods if theirs.is_off else (theirs.method,)
    if mine.is_off or not tried or mine.method in tried:
        return ""
    units = " and ".join(f"{get_method(each).threshold_unit} ({each})" for each in tried)
    unit = get_method(mine.method).threshold_unit
    return (
        f"it limits another quantity, {unit} ({mine.method}), and the study's numbers are of {units}: one says nothing "
        "about the other"
    )


def _range(recommendation: Recommended, tolerance: float) -> tuple[float | None, float | None]:
    """The recommended thresholds; None where *off* is recommended.

    What `cliptune apply` writes is the threshold with three digits: it is inside by definition.
    """
    threshold = recommendation.setting.threshold
    if threshold is None or recommendation.verdict is not Verdict.CLIP:
        return None, None
    written = float(spell_number(threshold))
    low, high = recommendation.interval or (threshold, threshold)
    return shown(min(low, written) / (1 + tolerance)), shown(max(high, written) * (1 + tolerance))


def _is_inside(
    setting: ClipSetting, recommendation: Recommended, low: float | None, high: float | None
) -> bool:
    if recommendation.verdict is Verdict.DO_NOT_CLIP:
        return setting.is_off
    value = setting.threshold
    return low is not None and high is not None and value is not None and low <= value <= high


def _evidence(
    setting: ClipSetting, recommendation: Recommended, low: float | None, high: float | None
) -> Evidence | None:
    """What the study measured of a value, or of the nearest one on the same side of what is recommended."""
    best = recommendation.best
    measured = None if best is None else _nearest(setting, recommendation, best, low, high)
    if best is None or measured is None:
        return None
    difference, baseline, sign = measured.difference, best, -1.0
    if _is_same(measured.setting, best):
        # The best clip setting where off is recommended: the same figures, read the other way round.
        off = next((each for each in recommendation.measured if each.setting == OFF_SETTING), None)
        difference, baseline, sign = off.difference if off else None, OFF_SETTING, 1.0
    if difference is None and not measured.num_diverged:
        return None
    ends = sorted((sign * difference.low, sign * difference.high)) if difference else (None, None)
    return Evidence(
        setting=measured.setting,
        is_exact=_is_same(setting, measured.setting),
        baseline=baseline,
        mean=sign * difference.mean if difference else None,
        low=ends[0],
        high=ends[1],
        num_pairs=difference.num_pairs if difference else 0,
        num_seeds=measured.num_seeds,
        num_diverged=measured.num_diverged,
        is_fresh=measured.is_fresh,
    )


def _nearest(
    setting: ClipSetting,
    recommendation: Recommended,
    best: ClipSetting,
    low: float | None,
    high: float | None,
) -> Measured | None:
    """What was measured of a value; else of the nearest one beyond the same end of the range, or of the best."""
    exact = [each for each in recommendation.measured if _is_same(each.setting, setting)]
    value = setting.threshold
    if exact or value is None or best.threshold is None:
        return exact[0] if exact else None
    middle = (best.threshold if low is None else low, best.threshold if high is None else high)
    near: list[tuple[float, Measured]] = []
    for each in recommendation.measured:
        threshold = each.setting.threshold
        if each.setting.method != setting.method or each.setting.learning_rate_scale != 1 or not threshold:
            continue
        distance = abs(math.log(threshold / value))
        if distance <= math.log(NEAR) and _side(threshold, *middle) == _side(value, *middle) != 0:
            near.append((distance, each))
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _side(threshold: float, low: float, high: float) -> int:
    """Below a range -1, above it 1, else 0."""
    return (threshold > high) - (threshold < low)


def _is_same(one: ClipSetting, other: ClipSetting) -> bool:
    """Whether two settings are shown alike."""
    rates = one.learning_rate_scale == other.learning_rate_scale
    return one.method == other.method and rates and shown(one.threshold) == shown(other.threshold)


def _is_worse(evidence: Evidence | None, margin: float | None) -> bool:
    """Whether the study put a value below the baseline by what matters: never by a single seed."""
    if evidence is None:
        return False
    if not evidence.num_seeds:
        return evidence.num_diverged >= _MIN_DIVERGED
    if evidence.mean is None or evidence.low is None or margin is None:
        return False
    return evidence.low > 0 and evidence.mean >= margin


def _with_drift(verdict: CheckVerdict, drift: Drift | None) -> CheckVerdict:
    """A drift takes the place of what was found for other code, unless that alone fails harder."""
    if drift is None or not drift.has_drifted:
        return verdict
    kept = (CheckVerdict.REGRESSION, CheckVerdict.NO_RECOMMENDATION)
    return verdict if verdict in kept else CheckVerdict.DRIFT


def _severity(verdict: CheckVerdict, fail_on: FailOn) -> Severity:
    if verdict in (CheckVerdict.INSIDE, CheckVerdict.NO_DIFFERENCE):
        return Severity.OK
    fails = {
        CheckVerdict.OUTSIDE: fail_on == "outside",
        CheckVerdict.DRIFT: fail_on == "outside",
        CheckVerdict.REGRESSION: fail_on != "never",
    }
    return Severity.FAILURE if fails.get(verdict, False) else Severity.WARNING
