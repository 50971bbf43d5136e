"""Proposals: a fixed opening, no repetition, and the same again from the same trials; then fresh seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable

import optuna
import pytest

from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.methods import get_method
from tuner.search.confirmation import candidates
from tuner.search.search import Search
from tuner.search.space import is_same
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

MakeTrial = Callable[..., Trial]
#: Two methods need the whole budget: no neighbours end the search early.
BOTH = ("global_norm", "value")


def texts(settings: Iterable[ClipSetting]) -> list[str]:
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


def asked(
    spec: StudySpec,
    reference: Reference,
    trials: Iterable[Trial] = (),
    warm_start: Iterable[ClipSetting] = (),
) -> tuple[ClipSetting, ...]:
    """The settings that a search asks for next; none if it has ended."""
    search = Search.from_trials(spec, reference, trials, warm_start=warm_start)
    found = None if search.end else search.ask()
    if found is None:
        return ()
    assert (found.stage, found.seeds) == (Stage.SEARCH, spec.seeds)
    return found.settings


def run(spec: StudySpec, reference: Reference, make: MakeTrial, trials: list[Trial]) -> list[Trial]:
    """A search without training, from whatever trials there are."""
    while settings := asked(spec, reference, trials):
        trials = [
            *trials,
            *(finish(make, each, len(trials) + at, spec) for at, each in enumerate(settings)),
        ]
    return trials


def test_opening_is_off_then_today_then_a_spread(reference: Reference) -> None:
    spec = StudySpec(workload="w", current=ClipSetting.parse("global_norm:1.5"), cohort_size=5)
    # Range 0.001 to 10: four decades in four parts (the opening holds at least four thresholds more).
    assert texts(asked(spec, reference)) == [
        "none",
        "global_norm:1.5",
        "global_norm:0.00316",
        "global_norm:0.0316",
        "global_norm:0.316",
    ]


def test_opening_goes_over_all_methods(reference: Reference) -> None:
    spec = StudySpec(workload="w", methods=("value", "global_norm", "global_norm_inf"), cohort_size=8)
    methods = [each.method for each in asked(spec, reference)]
    assert methods == ["none"] + ["value"] * 3 + ["global_norm"] * 2 + ["global_norm_inf"] * 2


def test_opening_is_continued_over_small_cohorts(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", num_trials=5, cohort_size=1)
    trials = run(spec, reference, trial, [])
    whole = asked(dataclasses.replace(spec, cohort_size=5), reference)
    assert [each.setting for each in trials] == list(whole)


@pytest.mark.parametrize("current", ["none", "global_norm:1.78"])
def test_today_is_not_proposed_twice(reference: Reference, current: str) -> None:
    spec = StudySpec(workload="w", current=ClipSetting.parse(current), num_trials=8)
    settings = asked(spec, reference)
    assert settings.count(ClipSetting.parse(current)) == 1
    assert len({str(each) for each in settings}) == len(settings) == 8


def test_warm_start_is_in_the_opening_once(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(
        workload="w", methods=BOTH, current=ClipSetting.parse("global_norm:1"), num_trials=10, cohort_size=3
    )
    warm = tuple(map(ClipSetting.parse, ("global_norm:0.2", "global_norm:1.003", "none", "value:0.02")))
    trials: list[Trial] = []
    while settings := asked(spec, reference, trials, warm):
        trials += [finish(trial, each, len(trials) + at, spec) for at, each in enumerate(settings)]
    tried = [each.setting for each in trials]
    # What is off or today's value already, within 1 %, is not repeated.
    assert texts(tried[:4]) == ["none", "global_norm:1", "global_norm:0.2", "value:0.02"]
    assert len(tried) == 10
    assert not any(is_same(one, other) for one, other in itertools.combinations(tried, 2))


def test_warm_start_leaves_half_of_the_budget(reference: Reference) -> None:
    spec = StudySpec(workload="w", num_trials=8, cohort_size=8)
    warm = [ClipSetting.parse(f"global_norm:{threshold}") for threshold in range(1, 9)]
    settings = asked(spec, reference, warm_start=warm)
    assert texts(settings[:4]) == ["none", "global_norm:1", "global_norm:2", "global_norm:3"]
    assert [each.threshold for each in settings[4:]] == [0.00316, 0.0316, 0.316, 3.16]


def test_tuned_rate_tries_off_at_several_rates(reference: Reference) -> None:
    spec = StudySpec(
        workload="w", num_trials=12, cohort_size=12, learning_rate_low=0.1, learning_rate_high=10
    )
    settings = asked(spec, reference)
    # A quarter of 12 beside off itself: the middles of three parts of two decades; 1 is off itself.
    off = [each for each in settings if each.is_off]
    assert texts(off) == ["none", "none@0.215", "none@4.64"]
    clips = [each for each in settings if not each.is_off]
    assert len(clips) == 9
    assert len({each.learning_rate_scale for each in clips}) == 9
    assert all(0.1 <= each.learning_rate_scale <= 10 for each in settings)
    assert settings[0].learning_rate_scale == 1


def test_opening_of_the_smallest_study(reference: Reference) -> None:
    spec = StudySpec(workload="w", num_trials=2, methods=BOTH)
    assert texts(asked(spec, reference)) == ["none", "global_norm:0.1"]
    with_today = dataclasses.replace(spec, current=ClipSetting.parse("value:7"))
    assert texts(asked(with_today, reference)) == ["none", "value:7"]
    rates = dataclasses.replace(spec, learning_rate_low=0.5, learning_rate_high=2.0)
    assert texts(asked(rates, reference)) == ["none", "global_norm:0.1"]


def test_number_of_proposals_is_bounded_by_cohort_and_budget(reference: Reference, trial: MakeTrial) -> None:
    assert len(asked(StudySpec(workload="w", num_trials=3), reference)) == 3
    assert len(asked(StudySpec(workload="w", num_trials=30, cohort_size=9), reference)) == 9
    spec = StudySpec(workload="w", num_trials=3)
    failed = [trial("none", number=number, state=TrialState.FAIL) for number in range(3)]
    search = Search.from_trials(spec, reference, failed)
    assert search.end == "all 3 settings asked for were tried"
    assert search.ask() is None


def test_failed_setting_is_not_tried_again(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w")
    first = asked(spec, reference)[1]
    failed = trial(str(first), number=0, state=TrialState.FAIL)
    assert first not in asked(spec, reference, [failed])


@pytest.mark.parametrize("methods", [("value", "global_norm"), ("global_norm", "value", "autoclip")])
def test_proposals_never_repeat_and_stay_in_range(
    reference: Reference, trial: MakeTrial, methods: tuple[str, ...]
) -> None:
    spec = StudySpec(workload="w", methods=methods, num_trials=40)
    settings = [each.setting for each in run(spec, reference, trial, [])]
    assert len(settings) == 40
    assert not any(is_same(one, other) for one, other in itertools.combinations(settings, 2))
    bounds = {"global_norm": (0.001, 10.0), "value": (0.0001, 0.1), "autoclip": (1.0, 99.0)}
    for each in settings[1:]:
        assert each.threshold is not None
        low, high = bounds[each.method]
        assert low <= each.threshold <= high
        assert each.threshold == get_method(each.method).rounded(each.threshold)
    assert {each.method for each in settings} == {"none", *methods}


def test_search_closes_in_on_the_best_and_ends_when_it_is_bracketed(
    reference: Reference, trial: MakeTrial
) -> None:
    spec = StudySpec(workload="w", num_trials=60, effect=0.0)
    trials = run(spec, reference, trial, [])
    end = Search.from_trials(spec, reference, trials).end
    assert end is not None
    assert end.startswith("thresholds within 30 % on both sides of global_norm:")
    assert len(trials) < 60
    assert abs(math.log10(candidates(trials)[0].setting.threshold / 0.3)) < 0.1


def test_crowded_range_is_still_filled(reference: Reference, trial: MakeTrial) -> None:
    # A tuned rate needs the whole budget; the range has room for 18 thresholds that are 1 % apart.
    spec = StudySpec(
        workload="w",
        threshold_low=1.0,
        threshold_high=1.2,
        learning_rate_low=0.9,
        learning_rate_high=1.1,
        num_trials=30,
        cohort_size=7,
    )
    settings = [each.setting for each in run(spec, reference, trial, [])]
    assert len(set(settings)) == 30


def test_same_trials_give_the_same_proposals(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", methods=BOTH, num_trials=24, seed=5)
    trials = run(dataclasses.replace(spec, num_trials=16), reference, trial, [])
    expected = asked(spec, reference, trials)
    assert len(expected) == 8
    shuffled = random.Random(0).sample(trials, len(trials))
    assert asked(spec, reference, shuffled) == expected
    assert asked(dataclasses.replace(spec, seed=6), reference, trials) != expected


def test_crashed_study_continues_as_an_undisturbed_one(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", methods=BOTH, num_trials=24, cohort_size=8)
    whole = run(spec, reference, trial, [])
    # The crash loses everything of the third cohort; the first two are stored.
    assert run(spec, reference, trial, whole[:16]) == whole


def test_open_trials_keep_new_proposals_apart(reference: Reference, trial: MakeTrial) -> None:
    spec = StudySpec(workload="w", methods=BOTH, num_trials=24, cohort_size=4)
    ended = run(dataclasses.replace(spec, num_trials=16), reference, trial, [])
    settings = asked(spec, reference, ended)
    waiting = [
        Trial(id=str(number), number=number, cohort=2, setting=each)
        for number, each in enumerate(settings, start=16)
    ]
    more = asked(spec, reference, [*ended, *waiting])
    assert len(more) == 4
    assert not any(is_same(one, other) for one in settings for other in more)


def test_pruned_and_diverged_trials_are_told_as_what_they_are(
    reference: Reference, trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.search import sampler

    studies = []
    monkeypatch.setattr(
        sampler, "_propose_one", lambda study, space, taken: studies.append(study) or taken[0]
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
    whole = Search.from_trials(spec, reference, []).space
    sampler.propose(whole, [*done, *more], [], count=1, seed=0)
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
        sampler, "_propose_one", lambda study, space, taken: studies.append(study) or taken[0]
    )
    # The range holds 4 of the 7 thresholds of the opening that are 1 % apart; the sampler fills the cohort.
    spec = StudySpec(workload="w", num_trials=30, threshold_low=1.0, threshold_high=1.04)
    settings = asked(spec, reference)
    told = studies[0].get_trials()
    opened = [each.params["global_norm.threshold"] for each in told]
    assert opened == [each.threshold for each in settings[1 : 1 + len(told)]]
    assert 1 < len(told) < 7
    assert {each.state for each in told} == {optuna.trial.TrialState.RUNNING}


def test_optunas_messages_are_silenced_only_meanwhile(
    reference: Reference, trial: MakeTrial, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    run(StudySpec(workload="w", methods=BOTH, num_trials=24), reference, trial, [])
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""


def test_search_is_followed_by_fresh_seeds_and_by_each_extension(
    reference: Reference, trial: MakeTrial
) -> None:
    spec = StudySpec(workload="w", num_trials=4, num_seeds=2, num_confirm_seeds=3)
    trials = run(spec, reference, trial, [])
    assert len(trials) == 4
    best = candidates(trials)[0].setting
    for extensions, seeds in (((), (2, 3, 4)), ((2,), (5, 6)), ((2, 4), (7, 8, 9, 10))):
        search = Search.from_trials(spec, reference, trials, extensions=extensions)
        found = search.ask()
        assert found is not None
        assert (found.settings, found.stage, found.seeds) == ((OFF_SETTING, best), Stage.CONFIRM, seeds)
        values = (1.0,) * len(seeds)
        trials += [
            trial(str(each), *values, number=len(trials) + at, stage=Stage.CONFIRM, seeds=seeds)
            for at, each in enumerate(found.settings)
        ]
        done = Search.from_trials(spec, reference, trials, extensions=extensions)
        assert done.ask() is None
        assert (done.end, len(done.searched)) == (search.end, 4)


def test_nothing_is_confirmed_while_the_search_has_open_trials(
    reference: Reference, trial: MakeTrial
) -> None:
    spec = StudySpec(workload="w", num_trials=3)
    trials = run(spec, reference, trial, [])
    last = dataclasses.replace(trials[-1], state=TrialState.RUNNING, lanes=())
    assert Search.from_trials(spec, reference, [*trials[:-1], last]).ask() is None
