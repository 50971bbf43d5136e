"""The verdict of a check: every row of the contract's table, its figures, and the rules of the caller."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from service.ci.judgement import CheckVerdict, Drift, Severity
from service.ci.outage import outage
from service.ci.recommended import poor_match, recommended
from service.ci.report import Refusal, Report, report
from service.ci.spelling import spell_number
from service.ci.verdict import CheckRuleError, judge
from service.errors import (
    ForbiddenError,
    InvalidRequestError,
    ProblemError,
    UnauthorizedError,
    UnavailableError,
)
from service.schemas import NeighbourOut, RecommendationAnswer, RecommendationOut
from tuner.evidence import Estimate, PairedDifference, Stage, Verdict
from tuner.search.statistics import paired_difference
from tuner.spec import ClipSetting, StudySpec

DRIFTED = Drift(True, "The median norm before clipping was 0.5 and is 3.1")
STEADY = Drift(False, "the median norm before clipping was 0.5 and is 0.52")


@pytest.fixture
def verdict_of(findings: Any) -> Any:
    def judged(value: str | None, verdict: Verdict = Verdict.CLIP, /, **changes: Any) -> Any:
        return judge(findings.checked(value), findings.recommendation(verdict, **changes), now=findings.when)

    return judged


@pytest.mark.parametrize(
    ("recommended_verdict", "setting", "expected"),
    [
        (Verdict.CLIP, "global_norm:0.28", "inside"),
        (Verdict.CLIP, "global_norm:0.45", "inside"),
        (Verdict.CLIP, "global_norm:0.46", "outside"),
        (Verdict.CLIP, "global_norm:0.1", "outside"),
        (Verdict.CLIP, "global_norm:1", "regression"),
        (Verdict.CLIP, "none", "regression"),
        (Verdict.CLIP, "value:0.35", "no_recommendation"),
        (Verdict.DO_NOT_CLIP, "none", "inside"),
        (Verdict.DO_NOT_CLIP, "global_norm:5", "outside"),
        (Verdict.DO_NOT_CLIP, "global_norm:1", "regression"),
        (Verdict.DO_NOT_CLIP, "value:1", "no_recommendation"),
        (Verdict.NO_DIFFERENCE, "none", "no_difference"),
        (Verdict.NO_DIFFERENCE, "global_norm:5", "no_difference"),
        (Verdict.NO_DIFFERENCE, "global_norm:1", "regression"),
        (Verdict.INCONCLUSIVE, "none", "inconclusive"),
        (Verdict.INCONCLUSIVE, "global_norm:1", "inconclusive"),
        (Verdict.CLIP, None, "no_recommendation"),
    ],
)
def test_verdict_by_recommendation_and_value(
    verdict_of: Any, recommended_verdict: Verdict, setting: str | None, expected: str
) -> None:
    assert verdict_of(setting, recommended_verdict).verdict == expected


@pytest.mark.parametrize(
    ("verdict", "fail_on", "expected"),
    [
        ("global_norm:0.35", "outside", Severity.OK),
        ("global_norm:0.1", "outside", Severity.FAILURE),
        ("global_norm:0.1", "regression", Severity.WARNING),
        ("global_norm:0.1", "never", Severity.WARNING),
        ("global_norm:1", "outside", Severity.FAILURE),
        ("global_norm:1", "regression", Severity.FAILURE),
        ("global_norm:1", "never", Severity.WARNING),
        ("value:1", "outside", Severity.WARNING),
    ],
)
def test_fail_on_names_the_mildest_verdict_that_fails(
    findings: Any, verdict: str, fail_on: Any, expected: Severity
) -> None:
    found = judge(findings.checked(verdict), findings.recommendation(), now=findings.when, fail_on=fail_on)
    assert found.severity is expected


def test_sentence_has_value_range_unit_and_the_measured_difference(verdict_of: Any) -> None:
    found = verdict_of("global_norm:1")
    # 1.7, 1.81, 1.59 against 1.5, 1.6, 1.4: mean 0.2, standard deviation 0.01, half width 4.3027 * 0.01 / sqrt(3).
    assert found.sentence == (
        "max_grad_norm 1.0 is outside the recommended 0.28 to 0.45, in units of the gradient norm (L2, before "
        "clipping): use 0.35. It ends at a val_loss 0.2 worse than global_norm:0.35 (95 % interval of the difference "
        "+0.175 to +0.225, 3 paired search seeds; 0.02 would matter). Study 0f5a1b2c of charlm-rnn, 6 seeds, "
        "2026-01-02."
    )
    assert found.title == "clip threshold worse than recommended"
    assert (found.value, found.low, found.high, found.recommended_spelled) == (1.0, 0.28, 0.45, "0.35")
    assert found.evidence.mean == pytest.approx(0.2)
    assert found.margin == pytest.approx(0.02)
    assert (found.study_id, found.study_url) == (
        "0f5a1b2c-0000-4000-8000-000000000000",
        "https://cliptune.example/studies/0f5a1b2c",
    )
    assert (found.num_seeds, found.workload, found.objective) == (6, "charlm-rnn", "val_loss")


def test_off_where_clipping_helps_has_the_figures_of_off(verdict_of: Any) -> None:
    found = verdict_of("none")
    assert found.sentence.startswith(
        "max_grad_norm 0.0 (off) leaves out clipping, which helps here: use 0.35. The study says so. It ends at a "
        "val_loss 0.5 worse than global_norm:0.35 (95 % interval of the difference +0.25 to +0.75, 6 paired fresh seeds"
    )
    assert found.value is None


def test_clipping_where_off_is_recommended_is_told_in_the_spelling_of_the_framework(verdict_of: Any) -> None:
    found = verdict_of("global_norm:5", Verdict.DO_NOT_CLIP)
    assert "clips, but off is recommended: use 0.0." in found.sentence
    assert found.title == "clipping on, though off is recommended"
    assert (found.low, found.high, found.recommended_spelled) == (None, None, "0.0")


def test_best_clip_setting_is_compared_with_off_where_off_is_recommended(findings: Any) -> None:
    better_off = PairedDifference(mean=0.5, low=0.25, high=0.75, num_pairs=6)
    stored = findings.recommendation(Verdict.DO_NOT_CLIP, difference=better_off)
    found = judge(findings.checked("global_norm:0.35"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.REGRESSION
    assert (found.evidence.baseline.is_off, found.evidence.mean, found.evidence.low) == (True, 0.5, 0.25)
    assert "0.5 worse than off" in found.sentence


def test_value_that_nobody_measured_is_outside_and_says_so(verdict_of: Any) -> None:
    found = verdict_of("global_norm:50")
    assert found.evidence is None
    assert "The study measured neither this value nor one near it." in found.sentence


def test_nearest_trial_speaks_for_a_value_within_a_quarter(verdict_of: Any) -> None:
    found = verdict_of("global_norm:1.2")
    assert found.verdict is CheckVerdict.REGRESSION
    assert not found.evidence.is_exact
    assert "The nearest value measured, global_norm:1, ends at a val_loss 0.2 worse" in found.sentence
    assert verdict_of("global_norm:1.3").verdict is CheckVerdict.OUTSIDE


def test_trial_within_the_range_never_speaks_for_a_value_outside(verdict_of: Any) -> None:
    # 0.35 is within a quarter of 0.44, but on the inner side of the range's end.
    assert verdict_of("global_norm:0.43", interval=(0.3, 0.42)).evidence is None


def test_small_or_uncertain_difference_is_no_regression(findings: Any) -> None:
    # 0.2 ends 0.01 worse on average: less than the 0.02 that matter.
    found = judge(findings.checked("global_norm:0.2"), findings.recommendation(), now=findings.when)
    assert found.verdict is CheckVerdict.OUTSIDE
    assert found.evidence.mean == pytest.approx(0.01)
    trials = [
        findings.trial("global_norm:0.35", {0: 1.5, 1: 1.6, 2: 1.4}),
        findings.trial("global_norm:2", {0: 1.5, 1: 2.6, 2: 1.4}),
    ]
    noisy = recommended(findings.answer(), spec=findings.spec(), trials=trials)
    found = judge(findings.checked("global_norm:2"), noisy, now=findings.when)
    assert found.evidence.mean == pytest.approx(1 / 3)
    assert found.evidence.low < 0
    assert found.verdict is CheckVerdict.OUTSIDE


def test_one_seed_is_never_a_verdict(findings: Any) -> None:
    trials = [findings.trial("global_norm:0.35", {0: 1.5}), findings.trial("global_norm:2", {0: 9.5})]
    stored = recommended(findings.answer(), spec=findings.spec(), trials=trials)
    found = judge(findings.checked("global_norm:2"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.OUTSIDE
    assert found.evidence is None
    diverged = [trials[0], findings.trial("global_norm:2", {0: None})]
    stored = recommended(findings.answer(), spec=findings.spec(), trials=diverged)
    found = judge(findings.checked("global_norm:2"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.OUTSIDE
    assert "It diverged in 1 of 1 seeds." in found.sentence


def test_divergence_in_every_seed_is_a_regression(findings: Any) -> None:
    trials = [
        findings.trial("global_norm:0.35", {0: 1.5, 1: 1.6}),
        findings.trial("global_norm:2", {0: None, 1: None}),
        findings.trial("global_norm:4", {0: 1.52, 1: None}),
    ]
    stored = recommended(findings.answer(), spec=findings.spec(), trials=trials)
    found = judge(findings.checked("global_norm:2"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.REGRESSION
    assert "It diverged in 2 of 2 seeds." in found.sentence
    found = judge(findings.checked("global_norm:4"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.OUTSIDE
    assert "It diverged in 1 of 2 seeds." in found.sentence


def test_value_in_use_is_compared_as_the_study_did_it_on_fresh_seeds(findings: Any) -> None:
    told = PairedDifference(mean=-0.3, low=-0.4, high=-0.2, num_pairs=6)
    stored = findings.recommendation(current="global_norm:1", against_current=told)
    found = judge(findings.checked("global_norm:1"), stored, now=findings.when)
    assert (found.evidence.mean, found.evidence.low, found.evidence.high) == (0.3, 0.2, 0.4)
    assert found.evidence.is_fresh
    assert "6 paired fresh seeds" in found.sentence


def test_confirmation_takes_the_place_of_the_search(findings: Any) -> None:
    trials = [
        findings.trial("global_norm:0.35", {0: 1.5, 1: 1.6}),
        findings.trial("global_norm:1", {0: 1.5, 1: 1.6}),
        findings.trial("global_norm:1", {7: 1.8, 8: 1.9}, stage=Stage.CONFIRM),
        findings.trial("global_norm:0.35", {7: 1.5, 8: 1.61}, stage=Stage.CONFIRM),
        findings.trial("global_norm:1", {9: 1.7}, stage=Stage.CONFIRM),
        findings.trial("global_norm:0.35", {9: 1.5}, stage=Stage.CONFIRM),
    ]
    stored = recommended(findings.answer(), spec=findings.spec(), trials=trials)
    (measured,) = [each for each in stored.measured if each.setting.threshold == 1.0]
    # The library's own comparison of the same seeds is the reference.
    reference = paired_difference({7: 1.5, 8: 1.61, 9: 1.5}, {7: 1.8, 8: 1.9, 9: 1.7})
    assert reference is not None
    for name in ("mean", "low", "high", "num_pairs"):
        assert getattr(measured.difference, name) == pytest.approx(getattr(reference, name))
    assert (measured.is_fresh, measured.num_seeds) == (True, 3)


def test_pruned_trials_are_no_measurement(findings: Any) -> None:
    pruned = findings.trial("global_norm:9", {0: 5.0, 1: 5.1}) | {"state": "pruned"}
    stored = recommended(findings.answer(), spec=findings.spec(), trials=[pruned])
    assert all(each.setting.threshold != 9.0 for each in stored.measured)


def test_answer_alone_is_enough_to_judge(findings: Any) -> None:
    stored = recommended(findings.answer())
    assert (
        judge(findings.checked("global_norm:0.4"), stored, now=findings.when).verdict is CheckVerdict.INSIDE
    )
    assert judge(findings.checked("none"), stored, now=findings.when).verdict is CheckVerdict.REGRESSION
    assert (stored.spec_digest, stored.methods, stored.margin) == ("", ("global_norm",), pytest.approx(0.02))


def test_margin_is_relative_to_the_best_where_off_always_diverged(findings: Any) -> None:
    off = Estimate(mean=None, standard_error=None, num_seeds=0, num_diverged=6)
    answer = findings.answer(off=off, difference=None)
    assert recommended(answer, spec=findings.spec(effect=0.1)).margin == pytest.approx(0.15)
    unknown = recommended(findings.answer(off=off, value=None, best=None, difference=None))
    assert unknown.margin is None


@pytest.mark.parametrize(
    ("value", "tolerance", "expected"),
    [
        (0.5, None, "outside"),
        (0.5, 0.1, "outside"),
        (0.5, 0.12, "inside"),
        (0.25, 0.1, "outside"),
        (0.25, 0.12, "inside"),
    ],
)
def test_tolerance_widens_the_range_to_both_sides(
    findings: Any, value: float, tolerance: float | None, expected: str
) -> None:
    found = judge(
        findings.checked(f"global_norm:{value}"),
        findings.recommendation(),
        now=findings.when,
        tolerance=tolerance,
    )
    assert found.verdict == expected


@pytest.mark.parametrize("threshold", [0.42371, 0.12345, 3.14159e-5, 98765.4])
def test_what_apply_writes_is_inside(verdict_of: Any, threshold: float) -> None:
    stored = {"setting": f"global_norm:{threshold}", "interval": (threshold, threshold)}
    assert verdict_of(f"global_norm:{spell_number(threshold)}", **stored).verdict is CheckVerdict.INSIDE


def test_number_that_is_judged_is_the_number_that_is_shown(verdict_of: Any, findings: Any) -> None:
    found = verdict_of("global_norm:0.45", interval=(0.28, 0.44999999))
    assert (found.verdict, found.value, found.high) == (CheckVerdict.INSIDE, 0.45, 0.45)
    for value in (0.450001, 0.4500004):
        found = judge(
            findings.checked(f"global_norm:{value}", spelled=str(value)),
            findings.recommendation(),
            now=findings.when,
        )
        assert found.verdict is CheckVerdict.OUTSIDE
        assert found.sentence.startswith(f"max_grad_norm {value} is outside the recommended 0.28 to 0.45")
        assert found.value == value


def test_setting_without_an_interval_is_a_point(verdict_of: Any) -> None:
    assert verdict_of("global_norm:0.35", interval=None).verdict is CheckVerdict.INSIDE
    found = verdict_of("global_norm:0.36", interval=None)
    assert found.verdict is CheckVerdict.OUTSIDE
    assert "the recommended 0.35, in units of" in found.sentence
    assert "the study has no interval" in found.sentence


def test_recommendation_with_another_learning_rate_is_not_compared(verdict_of: Any) -> None:
    found = verdict_of("global_norm:0.35", setting="global_norm:0.35@0.5", interval=None)
    assert found.verdict is CheckVerdict.NO_RECOMMENDATION
    assert "goes with 0.5 times the learning rate" in found.sentence


def test_kinds_are_never_crossed_and_the_reason_is_told(verdict_of: Any) -> None:
    found = verdict_of("value:0.35")
    assert found.sentence.startswith(
        "max_grad_norm 0.35 was not judged: it limits another quantity, absolute element of the gradient (value), "
        "and the study's numbers are of gradient norm (L2, before clipping) (global_norm): one says nothing about the "
        "other."
    )
    assert (found.low, found.high) == (None, None)


def test_value_that_is_no_setting_tells_its_obstacle(findings: Any) -> None:
    checked = findings.checked(
        None, obstacle="each tensor is limited on its own, which no method of ours does"
    )
    found = judge(checked, findings.recommendation(), now=findings.when)
    assert "was not judged: each tensor is limited on its own" in found.sentence
    assert found.severity is Severity.WARNING


def test_no_recommendation_tells_the_reason_and_is_a_warning(findings: Any) -> None:
    found = judge(
        findings.checked(), None, now=findings.when, reason_without="no study of workload 'x' has ended"
    )
    assert (found.verdict, found.severity) == (CheckVerdict.NO_RECOMMENDATION, Severity.WARNING)
    assert found.sentence == "max_grad_norm 1.0 was not judged: no study of workload 'x' has ended."
    assert (found.recommended, found.study_id, found.age_days) == (None, "", None)


def test_inconclusive_says_how_many_seeds_would_do(verdict_of: Any) -> None:
    found = verdict_of("global_norm:1", Verdict.INCONCLUSIVE, more_seeds=9)
    assert found.severity is Severity.WARNING
    assert (
        "about 9 further fresh seeds would settle it: cliptune extend 0f5a1b2c --seeds 9." in found.sentence
    )
    assert "would settle it" not in verdict_of("global_norm:1", Verdict.INCONCLUSIVE).sentence


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("global_norm:0.35", CheckVerdict.DRIFT),
        ("global_norm:0.1", CheckVerdict.DRIFT),
        ("global_norm:1", CheckVerdict.REGRESSION),
        ("value:1", CheckVerdict.NO_RECOMMENDATION),
    ],
)
def test_drift_takes_the_place_of_all_but_what_fails_harder(
    findings: Any, setting: str, expected: CheckVerdict
) -> None:
    found = judge(findings.checked(setting), findings.recommendation(), now=findings.when, drift=DRIFTED)
    assert found.verdict is expected
    assert "median norm before clipping was 0.5 and is 3.1." in found.sentence


def test_nothing_to_write_is_named_where_nothing_is_recommended(verdict_of: Any) -> None:
    unsettled = verdict_of("global_norm:1", Verdict.INCONCLUSIVE, setting="global_norm:0.35")
    for found in (unsettled, verdict_of("value:0.35"), verdict_of(None)):
        assert (found.recommended, found.recommended_spelled) == (None, "")


def test_softened_failure_is_a_warning(findings: Any) -> None:
    found = report([findings.judged("global_norm:1")], exit_zero=True, on_service_error="fail")
    assert (found.num_failures, found.num_warnings, found.exit_code, found.on_service_error) == (
        0,
        1,
        0,
        "warn",
    )
    assert found.judgements[0].verdict is CheckVerdict.REGRESSION


def test_off_without_a_paired_difference_has_the_reason_alone(findings: Any) -> None:
    failed = Estimate(mean=2.0, standard_error=None, num_seeds=1, num_diverged=5)
    stored = recommended(findings.answer(off=failed, difference=None))
    found = judge(findings.checked("none"), stored, now=findings.when)
    assert found.verdict is CheckVerdict.REGRESSION
    assert "It diverged in 5 of 6 seeds. In the others it has too few seeds in common with" in found.sentence
    unknown = Estimate(mean=None, standard_error=None, num_seeds=0, num_diverged=0)
    stored = recommended(findings.answer(off=unknown, difference=None))
    found = judge(findings.checked("none"), stored, now=findings.when)
    assert "The study says so. Study 0f5a1b2c" in found.sentence


def test_study_in_which_every_clip_setting_diverged_has_nothing_to_compare(findings: Any) -> None:
    stored = recommended(
        findings.answer(Verdict.DO_NOT_CLIP, best=None, value=None, difference=None), spec=findings.spec()
    )
    found = judge(findings.checked("global_norm:1"), stored, now=findings.when)
    assert (found.verdict, found.evidence) == (CheckVerdict.OUTSIDE, None)


def test_drift_fails_as_outside_does(findings: Any) -> None:
    severities = [
        judge(
            findings.checked("global_norm:0.35"),
            findings.recommendation(),
            now=findings.when,
            drift=DRIFTED,
            fail_on=rule,
        )
        for rule in ("outside", "regression", "never")
    ]
    assert [each.severity for each in severities] == [Severity.FAILURE, Severity.WARNING, Severity.WARNING]


def test_probe_without_drift_is_told_and_changes_nothing(findings: Any) -> None:
    found = judge(
        findings.checked("global_norm:0.35"), findings.recommendation(), now=findings.when, drift=STEADY
    )
    assert found.verdict is CheckVerdict.INSIDE
    assert (
        "fits the code as it is now: the median norm before clipping was 0.5 and is 0.52." in found.sentence
    )


@pytest.mark.parametrize(
    ("days", "allowed", "is_stale"), [(90, 90, False), (91, 90, True), (91, None, False), (-1, 0, False)]
)
def test_old_recommendation_is_stale(findings: Any, days: int, allowed: int | None, is_stale: bool) -> None:
    now = findings.when + timedelta(days=days)
    found = judge(
        findings.checked("global_norm:0.35"), findings.recommendation(), now=now, stale_after_days=allowed
    )
    assert found.is_stale is is_stale
    assert found.severity is (Severity.WARNING if is_stale else Severity.OK)
    assert ("more than the 90 allowed: run the study again." in found.sentence) is is_stale
    assert found.age_days == max(0, days)


def test_failure_stays_one_when_the_recommendation_is_old(findings: Any) -> None:
    now = findings.when + timedelta(days=100)
    found = judge(findings.checked("global_norm:1"), findings.recommendation(), now=now, stale_after_days=90)
    assert (found.severity, found.is_stale) == (Severity.FAILURE, True)


def test_implicit_value_is_called_a_default(findings: Any) -> None:
    checked = findings.checked("global_norm:1", is_implicit=True)
    found = judge(checked, findings.recommendation(), now=findings.when)
    assert found.sentence.startswith("max_grad_norm (not set: the default of Hugging Face is 1.0) is outside")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"tolerance": -0.1}, "tolerance must be a share >= 0, got -0.1"),
        ({"tolerance": float("nan")}, "got nan"),
        ({"fail_on": "inside"}, "fail_on must be one of outside, regression, never, got 'inside'"),
        ({"stale_after_days": -1}, "stale_after_days must be >= 0, got -1"),
    ],
)
def test_rules_out_of_bounds_are_refused(findings: Any, rules: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckRuleError, match=words) as raised:
        judge(findings.checked(), findings.recommendation(), now=findings.when, **rules)
    assert (raised.value.code, raised.value.exit_code) == ("invalid_check_rule", 2)


def test_report_orders_by_severity_and_place(findings: Any) -> None:
    judgements = [
        findings.judged("global_norm:0.35", file="a.yaml"),
        findings.judged("global_norm:1", file="z.yaml"),
        findings.judged("value:1", file="b.yaml"),
        findings.judged("global_norm:0.1", file="m.yaml"),
    ]
    found = report(judgements)
    assert [each.checked.file for each in found.judgements] == ["m.yaml", "z.yaml", "b.yaml", "a.yaml"]
    assert (found.num_failures, found.num_warnings, found.num_ok) == (2, 1, 1)
    assert found.summary == "4 clip values checked: 2 failed, 1 to look at, 1 ok."
    assert found.worst is found.judgements[0]


GOOD, BAD = "global_norm:0.35", "global_norm:1"
REFUSAL = Refusal(file="c.yaml", line=3, code="auto_value", sentence="max_grad_norm is auto")
DOWN = outage(UnavailableError("no service answers at http://x", code="service_unreachable"))


@pytest.mark.parametrize(
    ("settings", "rest", "expected"),
    [
        ([], {}, 0),
        ([GOOD], {}, 0),
        ([GOOD, BAD], {}, 1),
        ([BAD], {"exit_zero": True}, 0),
        ([GOOD], {"refusals": [REFUSAL]}, 2),
        ([BAD], {"refusals": [REFUSAL]}, 1),
        ([], {"outage": DOWN}, 0),
        ([], {"outage": DOWN, "on_service_error": "fail"}, 3),
        ([BAD], {"outage": DOWN, "on_service_error": "fail"}, 1),
        ([], {"refusals": [REFUSAL], "outage": DOWN, "on_service_error": "fail"}, 2),
        ([], {"refusals": [REFUSAL], "outage": DOWN, "on_service_error": "fail", "exit_zero": True}, 0),
    ],
)
def test_exit_code_of_the_contract(
    findings: Any, settings: list[str], rest: dict[str, Any], expected: int
) -> None:
    assert report([findings.judged(each) for each in settings], **rest).exit_code == expected


def test_empty_report_says_that_nothing_was_checked() -> None:
    assert (Report().summary, Report().worst) == ("No clip value was checked.", None)
    assert report([], refusals=[REFUSAL]).summary == "0 clip values checked: 1 not readable."


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (UnavailableError("x", code="service_unreachable"), "The service can't be reached"),
        (
            UnavailableError("x", code="unexpected_response"),
            "Something else answers at the service's address",
        ),
        (UnauthorizedError("x", code="key_missing"), "No access key was given"),
        (UnauthorizedError("x", code="key_malformed"), "The access key is mistyped"),
        (UnauthorizedError("x", code="key_unknown"), "The access key is wrong"),
        (UnauthorizedError("x", code="key_expired"), "The access key has expired"),
        (UnauthorizedError("x", code="key_revoked"), "The access key was revoked"),
        (ForbiddenError("x"), "The access key lacks a scope"),
        (
            UnavailableError("x", code="too_many_requests", status=429),
            "The service has taken too many requests from this key",
        ),
        (UnavailableError("x", status=503), "The service is in trouble (HTTP 503)"),
        (ProblemError("x", status=500), "The service is in trouble (HTTP 500)"),
        (UnauthorizedError("x", code="key_of_tomorrow"), "The service refuses the access key (HTTP 401)"),
    ],
)
def test_every_way_to_get_no_answer_has_its_own_sentence(error: ProblemError, title: str) -> None:
    found = outage(error)
    assert found is not None
    assert found.title == title
    assert found.sentence.startswith(f"{title}, so that no clip value was judged: ")
    assert found.sentence.endswith("It said: x")
    assert found.code == error.code


def test_wrong_question_is_no_outage() -> None:
    assert outage(InvalidRequestError("the query names no workload", code="query_incomplete")) is None


def test_judgement_is_frozen(findings: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings.judged().verdict = CheckVerdict.INSIDE


def answered(match: str, **changes: Any) -> dict[str, Any]:
    """What a query answers, as JSON values."""
    return RecommendationAnswer(
        **{"match": match, "recommendation": None, "reason": "nothing is stored for fingerprint ab"} | changes
    ).model_dump(mode="json")


def test_exact_match_is_judged_and_a_poor_one_is_not(findings: Any) -> None:
    answer = RecommendationOut(**findings.answer())
    assert poor_match(answered("exact", recommendation=answer)) is None
    assert poor_match(answered("none")) == "nothing is stored for fingerprint ab"
    assert poor_match(answered("workload", recommendation=answer)) == (
        "nothing is stored for fingerprint ab. The nearest study, 0f5a1b2c of charlm-rnn, suggests global_norm:0.35 to "
        "start from"
    )
    neighbour = NeighbourOut(
        recommendation_id="r",
        study_id="abcdef0123",
        workload="digits-mlp",
        verdict=Verdict.CLIP,
        setting=ClipSetting(method="global_norm", threshold=0.5),
        interval=None,
        kappa=1.0,
        distance=0.25,
        quality="close",
        differences=("batch size 64 instead of 32",),
        created_at=findings.when,
    )
    assert str(poor_match(answered("similar", neighbours=(neighbour,)))).endswith(
        "The nearest study, abcdef01 of digits-mlp (batch size 64 instead of 32), suggests global_norm:0.5 to start "
        "from"
    )


def test_setting_of_the_study_is_read_with_its_method(findings: Any) -> None:
    stored = recommended(findings.answer(), spec=findings.spec(methods=("value", "global_norm")))
    assert stored.methods == ("value", "global_norm")
    assert stored.spec_digest == StudySpec(workload="charlm-rnn", methods=("value", "global_norm")).digest
    assert stored.setting == ClipSetting(method="global_norm", threshold=0.35)
    assert stored.versions == {"cliptune": "0.1.0", "torch": "2.13.0"}
