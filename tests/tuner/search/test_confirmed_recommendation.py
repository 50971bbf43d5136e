"""A recommendation on fresh seeds: what it rests on, failures, further looks, the matched learning rate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from tuner.evidence import Recommendation, Reference, Stage, Trial, TrialState, Verdict
from tuner.search.recommendation import recommend, step_cap
from tuner.spec import ClipSetting, StudySpec

MakeTrial = Callable[..., Trial]
Values = tuple[float | None, ...]
SPEC = StudySpec(workload="w", num_trials=4, num_seeds=2, num_confirm_seeds=3, num_steps=100, effect=0.01)
FRESH = (2, 3, 4)
OFF: Values = (2.0, 2.1, 2.2)


@pytest.fixture
def answer(trial: MakeTrial, reference: Reference) -> Callable[..., Recommendation]:
    """Recommend from a search that global_norm:1 led, and from fresh values by setting."""

    def recommended(
        fresh: dict[str, Values],
        *,
        spec: StudySpec = SPEC,
        probe: Reference = reference,
        search: dict[str, Values] | None = None,
        extension: dict[str, Values] | None = None,
        extensions: tuple[int, ...] = (),
        **lanes: float,
    ) -> Recommendation:
        search = search or {
            "none": (2.0, 2.2),
            "global_norm:1": (1.0, 1.2),
            "global_norm:2": (1.1, 1.3),
            "global_norm:4": (1.2, 1.4),
        }
        trials = [
            trial(name, *values, number=number, seeds=(0, 1), **lanes)
            for number, (name, values) in enumerate(search.items())
        ]
        for cohort, (seeds, values_of) in enumerate(((FRESH, fresh), (range(5, 99), extension or {}))):
            for name, values in values_of.items():
                given = tuple(seeds[: len(values)])
                made = trial(
                    name,
                    *values,
                    number=len(trials),
                    seeds=given,
                    stage=Stage.CONFIRM,
                    cohort=1 + cohort,
                    state=TrialState.COMPLETE if values else TrialState.FAIL,
                    **lanes,
                )
                trials.append(made)
        return recommend(spec, probe, trials[::-1], extensions=extensions, objective="val_loss")

    return recommended


def test_verdict_rests_on_the_fresh_seeds_alone(answer: Callable[..., Recommendation]) -> None:
    fresh = {"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)}
    found = answer(fresh)
    # Better by 0.1 in each of three seeds; margin 0.021.
    assert found.verdict is Verdict.CLIP
    assert found.difference is not None
    assert (found.difference.mean, found.difference.num_pairs) == (pytest.approx(-0.1), 3)
    assert found.difference.test == "paired t"
    assert found.num_fresh_seeds == 3
    assert found.value is not None
    assert (found.value.mean, found.off.mean) == (pytest.approx(2.0), pytest.approx(2.1))
    assert "3 fresh seeds" in found.reason
    assert "chosen among" not in found.reason

    # Other values of the search that leave its order alone change nothing of that.
    search = {"none": (7.0, 9.0), "global_norm:1": (0.1, 0.2), "global_norm:2": (0.1, 0.4)}
    other = answer(fresh, search=search)
    assert (other.difference, other.value, other.off) == (found.difference, found.value, found.off)
    assert (other.verdict, other.reason) == (found.verdict, found.reason)


def test_what_led_the_search_is_judged_even_if_it_loses(answer: Callable[..., Recommendation]) -> None:
    found = answer({"none": OFF, "global_norm:1": (2.1, 2.2, 2.3)})
    assert found.verdict is Verdict.DO_NOT_CLIP
    assert found.setting.is_off
    assert str(found.best) == "global_norm:1"
    assert (found.num_trials, found.interval) == (4, None)


@pytest.mark.parametrize(
    "fresh",
    [
        {"global_norm:1": (1.0, 1.0, 1.0)},
        {"none": OFF},
        {"none": OFF, "global_norm:1": ()},
        {"none": OFF, "global_norm:2": (1.0, 1.0, 1.0)},
    ],
)
def test_half_a_confirmation_is_none(answer: Callable[..., Recommendation], fresh: dict[str, Values]) -> None:
    found = answer(fresh)
    assert found.num_fresh_seeds == 0
    assert found.difference is not None
    assert found.difference.num_pairs == 2
    assert found.difference.test == "paired t, Bonferroni over 3 settings"
    assert found.difference.mean == pytest.approx(-1.0)


def test_leader_with_a_diverged_fresh_seed_gives_way(answer: Callable[..., Recommendation]) -> None:
    fresh = {"none": OFF, "global_norm:1": (1.0, None, 1.0), "global_norm:2": (1.1, 1.2, 1.3)}
    found = answer(fresh)
    assert (str(found.best), found.verdict) == ("global_norm:2", Verdict.CLIP)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(-0.9)
    # None is without: the first is the best again, and its failure counts.
    all_three = fresh | {"global_norm:2": (None, 1.2, 1.3), "global_norm:4": (1.2, 1.3, None)}
    found = answer(all_three)
    assert str(found.best) == "global_norm:1"
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.failures is not None
    assert (found.failures.num_failed, found.failures.num_lanes) == (1, 5)


def test_each_further_look_widens_the_interval(answer: Callable[..., Recommendation]) -> None:
    fresh = {"none": OFF, "global_norm:1": (1.9, 2.05, 2.15)}
    more = {"none": (2.0, 2.1), "global_norm:1": (1.95, 2.0)}
    found = answer(fresh, extension=more, extensions=(2,))
    # Differences -0.1, -0.05, -0.05, -0.05, -0.1: mean -0.07, deviation 0.02739; the quantile at 1 - 0.025 / 2 with 4
    # degrees of freedom is 3.4954: half width 0.0428.
    assert found.num_fresh_seeds == 5
    assert found.difference is not None
    assert found.difference.test == "paired t, Bonferroni over 2 looks"
    assert (found.difference.low, found.difference.high) == (
        pytest.approx(-0.1128, abs=1e-4),
        pytest.approx(-0.0272, abs=1e-4),
    )
    # A study without a first round has looked once; an empty round is no look.
    only = dataclasses.replace(SPEC, num_confirm_seeds=0)
    first_look = answer(fresh, spec=only, extensions=(3,)).difference
    assert first_look is not None
    assert first_look.test == "paired t"
    assert answer(fresh, extensions=(0,)).difference == answer(fresh).difference


def test_more_seeds_are_those_beyond_the_fresh_ones(answer: Callable[..., Recommendation]) -> None:
    # Differences -0.2, -0.1, 0: as many as 9 seeds at a second look, of which 3 are there.
    found = answer({"none": OFF, "global_norm:1": (1.8, 2.0, 2.2)})
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_seeds == 6
    assert "about 6 more fresh seeds would settle it" in found.reason
    assert answer({"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)}).more_seeds is None


@pytest.mark.parametrize(
    ("off", "clip", "verdict"),
    [
        # 6 of 6, 2 / 2**6 = 0.03125.
        ((None, 2.0, 2.1, 2.2, 2.3, 2.4), (1.0,) * 6, Verdict.CLIP),
        ((2.0,) * 6, (2.1, 2.2, 2.3, 2.4, 2.5, 50.0), Verdict.DO_NOT_CLIP),
        # 5 of 5 are 0.0625, unless off failed in all of them.
        ((None, 2.0, 2.1, 2.2, 2.3), (1.0,) * 5, Verdict.INCONCLUSIVE),
        ((None,) * 5, (1.0,) * 5, Verdict.CLIP),
        # A dead network at a finite loss is a failure like any other: from 100 to 1, half of the way is 10.
        ((60.0, 60.0, 60.0, 60.0), (1.0, 1.1, 1.2, 1.3), Verdict.CLIP),
        ((60.0, None, 99.0, None), (1.0, 1.1, 1.2, 1.3), Verdict.CLIP),
        # Three seeds are too few for that.
        ((60.0, None, 99.0), (1.0, 1.1, 1.2), Verdict.INCONCLUSIVE),
        # Far away, but less than half: no failure; -8, -8.1, -7.9 decide as numbers.
        ((9.0, 9.2, 9.1), (1.0, 1.1, 1.2), Verdict.CLIP),
    ],
)
def test_failures_on_fresh_seeds(
    answer: Callable[..., Recommendation], off: Values, clip: Values, verdict: Verdict
) -> None:
    spec = dataclasses.replace(SPEC, num_confirm_seeds=len(off))
    search = {"none": (2.0, 2.2), "global_norm:1": (1.0, 1.2)}
    trials = {"none": off, "global_norm:1": clip}
    # As seeds 5 and up, of which there are as many as wanted.
    found = answer({}, spec=spec, search=search, extension=trials, extensions=(), initial=100.0)
    assert found.verdict is verdict
    failed = [sum(value is None or value > 10 for value in values) for values in (clip, off)]
    assert found.failures is not None
    assert found.off_failures is not None
    assert (found.failures.num_failed, found.off_failures.num_failed) == tuple(failed)
    assert found.failures.num_lanes == found.off_failures.num_lanes == len(off) + 2
    if any(failed) and found.difference is not None:
        assert found.difference.test == "paired t, seeds without failure"
    json.dumps(found.to_json(), allow_nan=False)


def test_failures_of_the_search_are_reported_but_decide_nothing(
    answer: Callable[..., Recommendation],
) -> None:
    search = {"none": (2.0, None), "global_norm:1": (1.0, 1.2)}
    found = answer({"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)}, search=search)
    assert found.difference is not None
    assert (found.verdict, found.difference.p_value) == (Verdict.CLIP, None)
    assert found.off_failures is not None
    assert (found.off_failures.num_failed, found.off_failures.num_lanes) == (1, 5)
    assert found.off_failures.low == pytest.approx(0.0362, abs=1e-4)
    assert found.num_diverged_trials == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("global_norm:2", 1.0),  # rate 0.5
        ("global_norm:2@0.1", 0.1),
        ("per_tensor_norm:2", 1.0),
        ("value:2", None),  # not an L2 norm
        ("autoclip:10", None),
        ("none", None),
        ("none@0.5", None),
    ],
)
def test_step_cap_is_rate_times_norm(sgd_reference: Reference, setting: str, expected: float | None) -> None:
    assert step_cap(ClipSetting.parse(setting), sgd_reference) == (expected and pytest.approx(expected))


def test_step_cap_needs_sgd_and_its_rate(reference: Reference, sgd_reference: Reference) -> None:
    setting = ClipSetting.parse("global_norm:2")
    assert step_cap(setting, reference) is None
    for change in ({"optimizer": "adam"}, {"learning_rate": None}):
        features = dataclasses.replace(sgd_reference.features, **change)  # type: ignore[type-var]
        assert step_cap(setting, dataclasses.replace(sgd_reference, features=features)) is None


def test_matched_rate_is_compared_where_it_was_confirmed(
    answer: Callable[..., Recommendation], sgd_reference: Reference
) -> None:
    clips = {"clip_fraction": 0.9, "mean_scale": 0.25, "probe": sgd_reference}
    fresh = {"none": OFF, "global_norm:1": (1.9, 2.0, 2.1), "none@0.25": (1.8, 1.9, 2.0)}
    found = answer(fresh, **clips)
    assert found.verdict is Verdict.CLIP
    assert found.matched is not None
    assert (found.matched.mean, found.matched.num_seeds) == (pytest.approx(1.9), 3)
    assert found.against_matched is not None
    assert found.against_matched.mean == pytest.approx(0.1)
    assert found.step_cap == 0.5
    # Its results are those of another setting than off.
    assert found.off.mean == pytest.approx(2.1)

    without = {name: values for name, values in fresh.items() if name != "none@0.25"}
    for other in (
        answer(without, **clips),
        answer(fresh, **{**clips, "clip_fraction": 0.5}),
        answer(fresh, clip_fraction=0.9, mean_scale=0.25),
    ):
        assert (other.matched, other.against_matched) == (None, None)


def test_todays_value_is_compared_on_the_fresh_seeds_too(answer: Callable[..., Recommendation]) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse("global_norm:4"))
    fresh = {"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)}
    found = answer(fresh | {"global_norm:4": (2.0, 2.1, 2.2)}, spec=spec).against_current
    assert found is not None
    assert (found.mean, found.num_pairs, found.test) == (pytest.approx(-0.1), 3, "paired t")
    assert answer(fresh | {"global_norm:4": ()}, spec=spec).against_current is None
    as_today = dataclasses.replace(SPEC, current=ClipSetting.parse("global_norm:1"))
    found = answer(fresh, spec=as_today).against_current
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_end_of_the_search_is_told(answer: Callable[..., Recommendation]) -> None:
    fresh = {"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)}
    assert answer(fresh).search_end == "all 4 settings asked for were tried"
    unfinished = dataclasses.replace(SPEC, num_trials=9)
    assert answer({}, spec=unfinished).search_end == ""


def test_costs_are_those_of_both_stages(answer: Callable[..., Recommendation]) -> None:
    found = answer({"none": OFF, "global_norm:1": (1.9, 2.0, 2.1)})
    assert found.lane_steps == (4 * 2 + 2 * 3) * 100
    assert found.full_runs == 14
    assert found.train_seconds == pytest.approx(14 * 0.5)
    assert (found.num_trials, found.num_diverged_trials) == (4, 0)
