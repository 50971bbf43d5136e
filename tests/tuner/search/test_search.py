"""Proposals: a fixed opening, no repetition, and the same again from the same trials."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable

import optuna
import pytest

from tuner.evidence import Reference, Trial, TrialState
from tuner.search.search import Search
from tuner.search.space import is_same
from tuner.spec import ClipSetting, StudySpec

MakeTrial = Callable[..., Trial]


def texts(settings: tuple[ClipSetting, ...]) -> list[str]:
    return [str(each) for each in settings]


def finish(make: MakeTrial, setting: ClipSetting, number: int, spec: StudySpec) -> Trial:
    """A result that is best at threshold 0.3, worse by the square of the log distance, diverged above 5."""
    if setting.threshold is None:
        values: tuple[float | None, ...] = (2.0, 2.1)
    elif setting.threshold > 5:
        values = (1.5, None)
    else:
        value = 1.0 + math.log10(setting.threshold / 0.3) ** 2
        values = (value, value + 0.1)
    rungs = {spec.rung_steps[-1]: dict(enumerate(values))}
    return make(str(setting), *values, number=number, rungs=rungs)


def run(spec: StudySpec, reference: Reference, make: MakeTrial, trials: list[Trial]) -> list[Trial]:
    """A study without training, from whatever trials there are."""
    while not (search := Search.from_trials(spec, reference, trials)).is_finished:
        settings = search.ask(spec.cohort_size)
        trials = [
            *trials,
            *(finish(make, each, len(trials) + at, spec) for at, each in enumerate(settings)),
        ]
    return trials


def test_opening_is_off_then_today_then_a_spread(reference: Reference) -> None:
    spec = StudySpec(workload="w", current=ClipSetting.parse("global_norm:1.5"), cohort_size=5)
    settings = Search.from_trials(spec, reference, []).ask(5)
    # Range 0.01 to 10: three decades in four parts (the opening holds at least four thresholds more).
    assert texts(settings) == [
        "none",
        "global_norm:1.5",
        "global_norm:0.0237",
        "global_norm:0.133",
        "global_norm:0.75",
    ]


def test_opening_goes_over_all_methods(reference: Reference) -> None:
    spec = StudySpec(workload="w", methods=("value", "global_norm", "global_norm_inf"), cohort_size=8)
    settings = Search.from_trials(spec, reference, []).ask(8)
    methods = [each.method for each in settings]
    assert methods == ["none"] + ["value"] * 3 + ["global_norm"] * 2 + ["global_norm_inf"] * 2


def test_opening_is_continued_over_small_cohorts(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=5, cohort_size=1)
    trials = run(spec, reference, trial, [])
    whole = Search.from_trials(dataclasses.replace(spec, cohort_size=5), reference, []).ask(5)
    assert [each.setting for each in trials] == list(whole)


@pytest.mark.parametrize("current", ["none", "global_norm:1.78"])
def test_today_is_not_proposed_twice(reference: Reference, current: str) -> None:
    # 1.78 is the middle of the last of three parts of the range.
    spec = StudySpec(workload="w", current=ClipSetting.parse(current), num_trials=8)
    settings = Search.from_trials(spec, reference, []).ask(8)
    assert settings.count(ClipSetting.parse(current)) == 1
    assert len({str(each) for each in settings}) == len(settings)


def test_number_of_proposals_is_bounded_by_the_budget(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=3)
    search = Search.from_trials(spec, reference, [])
    assert (search.remaining, search.is_finished) == (3, False)
    assert len(search.ask(100)) == 3
    failed = [trial("none", number=number, state=TrialState.FAIL) for number in range(3)]
    search = Search.from_trials(spec, reference, failed)
    assert (search.remaining, search.is_finished, search.ask(5)) == (0, True, ())


def test_failed_setting_is_not_tried_again(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w")
    first = Search.from_trials(spec, reference, []).ask(2)[1]
    failed = trial(str(first), number=0, state=TrialState.FAIL)
    assert first not in Search.from_trials(spec, reference, [failed]).ask(8)


@pytest.mark.parametrize("methods", [("global_norm",), ("global_norm", "value")])
def test_proposals_never_repeat_and_stay_in_range(
    reference: Reference, trial: MakeTrial, methods: tuple[str, ...]
) -> None:
    spec = StudySpec(workload="w", methods=methods, num_trials=40)
    settings = [each.setting for each in run(spec, reference, trial, [])]
    assert len(settings) == 40
    assert not any(is_same(one, other) for one, other in itertools.combinations(settings, 2))
    bounds = {"global_norm": (0.01, 10.0), "value": (0.0001, 0.1)}
    for each in settings[1:]:
        assert each.threshold is not None
        low, high = bounds[each.method]
        assert low <= each.threshold <= high
        assert each.threshold == float(f"{each.threshold:.3g}")
    assert {each.method for each in settings} == {"none", *methods}


def test_search_concentrates_around_the_best(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=40)
    proposed = [each.setting.threshold or 0.0 for each in run(spec, reference, trial, [])][20:]
    # A third of the log range would hold a third of random proposals.
    near = [each for each in proposed if 0.3 / math.sqrt(10) < each < 0.3 * math.sqrt(10)]
    assert len(near) > len(proposed) / 2


def test_crowded_range_is_still_filled(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", threshold_low=1.0, threshold_high=1.2, num_trials=14, cohort_size=7)
    thresholds = [each.setting.threshold for each in run(spec, reference, trial, [])][1:]
    assert len(thresholds) == 13
    assert len(set(thresholds)) == 13


def test_same_trials_give_the_same_proposals(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=24, seed=5)
    trials = run(dataclasses.replace(spec, num_trials=16), reference, trial, [])
    expected = Search.from_trials(spec, reference, trials).ask(8)
    shuffled = random.Random(0).sample(trials, len(trials))
    assert Search.from_trials(spec, reference, shuffled).ask(8) == expected
    other_seed = dataclasses.replace(spec, seed=6)
    assert Search.from_trials(other_seed, reference, trials).ask(8) != expected


def test_crashed_study_continues_as_an_undisturbed_one(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=24)
    whole = run(spec, reference, trial, [])
    # The crash loses everything of the third cohort; the first two are stored.
    assert run(spec, reference, trial, whole[:16]) == whole


def test_open_trials_keep_new_proposals_apart(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=24)
    ended = run(dataclasses.replace(spec, num_trials=16), reference, trial, [])
    settings = Search.from_trials(spec, reference, ended).ask(4)
    waiting = [
        Trial(id=str(number), number=number, cohort=2, setting=each)
        for number, each in enumerate(settings, start=16)
    ]
    more = Search.from_trials(spec, reference, [*ended, *waiting]).ask(4)
    assert len(more) == 4
    assert not any(is_same(one, other) for one in settings for other in more)


def test_pruned_and_diverged_trials_are_told_as_what_they_are(
    reference: Reference, trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.search import sampler

    studies = []
    monkeypatch.setattr(
        sampler, "_propose_one", lambda study, ranges, taken: studies.append(study) or taken[0]
    )
    spec = StudySpec(workload="w", num_trials=30)
    done = run(dataclasses.replace(spec, num_trials=8), reference, trial, [])
    more = [
        trial("global_norm:0.2", 1.5, 1.7, number=8, state=TrialState.PRUNED, rungs={44: {0: 1.5, 1: 1.7}}),
        trial("global_norm:9", None, None, number=9, state=TrialState.PRUNED, rungs={44: {0: None, 1: None}}),
        trial("global_norm:0.9", number=10, state=TrialState.FAIL),
        trial("global_norm:0.8", number=11, state=TrialState.RUNNING),
        trial("global_norm:99", 1.0, 1.0, number=12),  # today's value may lie outside the range
    ]
    Search.from_trials(spec, reference, [*done, *more]).ask(1)
    told = {each.params["global_norm.threshold"]: each for each in studies[0].get_trials()}
    states = optuna.trial.TrialState
    assert told[0.2].state is states.PRUNED
    assert told[0.2].intermediate_values == {44: pytest.approx(1.6)}
    assert told[0.2].constraints == {"diverged": 0.0}
    assert told[9].constraints == {"diverged": 2.0}
    assert told[9].intermediate_values == {44: math.inf}
    assert told[0.8].state is states.RUNNING
    assert not {0.9, 99} & set(told)
    assert len(told) == 7 + 3  # the opening without off, pruned, diverged, running


def test_rest_of_the_opening_is_running_while_the_sampler_is_asked(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.search import sampler

    studies = []
    monkeypatch.setattr(
        sampler, "_propose_one", lambda study, ranges, taken: studies.append(study) or taken[0]
    )
    settings = Search.from_trials(StudySpec(workload="w", num_trials=30), reference, []).ask(9)
    assert len(settings) == 9
    told = studies[0].get_trials()
    assert [each.params["global_norm.threshold"] for each in told] == [
        each.threshold for each in settings[1:8]
    ]
    assert {each.state for each in told} == {optuna.trial.TrialState.RUNNING}


def test_optunas_messages_are_silenced_only_meanwhile(
    reference: Reference, trial: MakeTrial, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    run(StudySpec(workload="w", methods=("global_norm", "value"), num_trials=24), reference, trial, [])
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
