"""Whatever trials do, a study ends, never repeats itself, goes on after a crash, and has an answer."""

from __future__ import annotations

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import World, confirming, searched, study

from tuner.errors import NoTrialsError
from tuner.evidence import Recommendation, Reference, Trial, TrialState, Verdict
from tuner.search.recommendation import recommend
from tuner.search.search import Search
from tuner.spec import ClipSetting, StudySpec

probabilities = st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.9, 1.0])
worlds = st.builds(
    World,
    seed=st.integers(0, 10_000),
    level=st.sampled_from([2.0, 0.0, -5.0, 1e-8, 1e12]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 100.0]),
    bowl=st.sampled_from([0.0, 0.5]),
    off_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    diverge=probabilities,
    collapse=probabilities,
    inert=probabilities,
    crash=st.sampled_from([0.0, 0.0, 0.0, 0.2, 1.0]),
    initial=st.sampled_from([None, 10.0, 1e13]),
    clip_fraction=st.sampled_from([0.1, 0.9]),
    later=st.sampled_from([0.0, 50.0]),
).map(lambda world: dataclasses.replace(world, collapse=world.collapse if world.initial else 0.0))


@st.composite
def specs(draw: st.DrawFn) -> StudySpec:
    """Studies of up to 14 settings."""
    rates = draw(st.sampled_from([(None, None), (None, None), (0.1, 10.0), (0.2, 0.5)]))
    current = draw(
        st.sampled_from([None, "none", "global_norm:0.3", "value:1", "none@0.5", "global_norm:1@2"])
    )
    return StudySpec(
        workload="w",
        methods=draw(st.sampled_from([("global_norm",), ("value", "autoclip"), ("norm_growth",)])),
        current=None if current is None else ClipSetting.parse(current),
        num_trials=draw(st.integers(2, 14)),
        num_seeds=draw(st.integers(2, 4)),
        num_confirm_seeds=draw(st.sampled_from([0, 2, 6])),
        learning_rate_low=rates[0],
        learning_rate_high=rates[1],
        num_steps=90,
        cohort_size=draw(st.integers(1, 8)),
        num_rungs=draw(st.integers(1, 3)),
        effect=draw(st.sampled_from([0.0, 0.01, 0.5])),
        seed=draw(st.integers(0, 3)),
    )


extension_rounds = st.lists(st.sampled_from([1, 2, 5]), max_size=2).map(tuple)


def require_consistent(spec: StudySpec, found: Recommendation, trials: list[Trial]) -> None:
    tried = {each.setting for each in trials}
    assert found.setting.is_off or found.setting in tried
    if found.interval is not None:
        assert found.interval[0] <= (found.setting.threshold or 0.0) <= found.interval[1]
    assert (found.interval is None) == (found.setting.is_off or spec.tunes_learning_rate)
    if found.verdict is Verdict.CLIP:
        assert found.setting == found.best
    if found.verdict in (Verdict.NO_DIFFERENCE, Verdict.DO_NOT_CLIP):
        assert found.setting.is_off
    assert found.more_seeds is None or (found.verdict is Verdict.INCONCLUSIVE and found.more_seeds >= 2)
    assert found.reason.endswith(".")
    json.loads(json.dumps(found.to_json(), allow_nan=False))
    for rate in (found.failures, found.off_failures):
        if rate is not None:
            assert 0 <= rate.low <= rate.num_failed / rate.num_lanes <= rate.high <= 1
    assert found.lane_steps >= 0
    assert found.num_fresh_seeds <= len({lane.seed for each in confirming(trials) for lane in each.lanes})


@settings(max_examples=60, deadline=None)
@given(spec=specs(), world=worlds, extensions=extension_rounds)
def test_every_study_ends_repeats_nothing_and_has_an_answer(
    reference: Reference, sgd_reference: Reference, spec: StudySpec, world: World, extensions: tuple[int, ...]
) -> None:
    probe = sgd_reference if world.seed % 2 else reference
    trials = study(spec, probe, world, extensions=extensions)
    keys = [(each.setting, each.seeds) for each in trials]
    assert len(set(keys)) == len(keys)
    assert len(searched(trials)) <= spec.num_trials
    assert trials[0].setting.is_off
    assert all(each.seeds == spec.seeds for each in searched(trials))
    assert not {seed for each in confirming(trials) for seed in each.seeds} & set(spec.seeds)
    try:
        found = recommend(spec, probe, trials, extensions=extensions)
    except NoTrialsError:
        assert all(each.state is TrialState.FAIL for each in trials)
        return
    require_consistent(spec, found, trials)
    assert found.search_end


@settings(max_examples=25, deadline=None)
@given(spec=specs(), world=worlds, extensions=extension_rounds, data=st.data())
def test_crash_anywhere_changes_nothing(
    sgd_reference: Reference, spec: StudySpec, world: World, extensions: tuple[int, ...], data: st.DataObject
) -> None:
    whole = study(spec, sgd_reference, world, extensions=extensions)
    # Results are told in the order of cohorts, and in a cohort rung by rung.
    told = sorted(whole, key=lambda each: (each.cohort, len(each.rungs), each.number))
    cut = data.draw(st.integers(0, len(whole)))
    ended = {each.id for each in told[:cut]}
    # The cohort in which it crashed is stored whole; what had not ended is open and trained again.
    last = told[cut - 1].cohort if cut else -1
    stored = [
        each if each.id in ended else dataclasses.replace(each, state=TrialState.WAITING, rungs={}, lanes=())
        for each in whole
        if each.cohort <= last
    ]
    shuffled = data.draw(st.permutations(stored))
    assert study(spec, sgd_reference, world, shuffled, extensions=extensions) == whole


@settings(max_examples=25, deadline=None)
@given(spec=specs(), world=worlds, data=st.data())
def test_answer_of_an_unfinished_study_is_consistent_too(
    sgd_reference: Reference, spec: StudySpec, world: World, data: st.DataObject
) -> None:
    trials = study(spec, sgd_reference, world)
    part = [each for each in trials if data.draw(st.booleans())]
    if all(each.state is TrialState.FAIL for each in part):
        return
    found = recommend(spec, sgd_reference, part)
    require_consistent(spec, found, part)


@settings(max_examples=25, deadline=None)
@given(spec=specs(), world=worlds)
def test_same_trials_give_the_same_ask(sgd_reference: Reference, spec: StudySpec, world: World) -> None:
    def ask_again(search: Search) -> None:
        again = Search.from_trials(spec, sgd_reference, reversed(search.trials))
        assert again.ask() == search.ask()
        assert again.end == search.end

    study(spec, sgd_reference, world, on_ask=ask_again)
