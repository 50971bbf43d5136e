"""What is trained on fresh seeds: rounds, leaders that give way, extensions, the matched learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.search.confirmation import (
    Asked,
    baseline,
    candidates,
    confirmation,
    confirmed,
    leaders,
    matched_setting,
    rounds,
)
from tuner.search.recommendation import recommend
from tuner.spec import ClipSetting, StudySpec

MakeTrial = Callable[..., Trial]
SPEC = StudySpec(workload="w", num_trials=5, num_seeds=2, num_confirm_seeds=3)
FRESH = (2, 3, 4)


@pytest.fixture
def ended(trial: MakeTrial) -> list[Trial]:
    """A search with four leaders, the best first; what comes after them can't lead."""
    return [
        trial("none", 2.0, 2.0, number=0),
        trial("value:1", 1.0, 1.0, number=1),
        trial("value:2", 1.1, 1.1, number=2),
        trial("value:3", 1.2, 1.2, number=3),
        trial("value:4", 1.3, 1.3, number=4),
        trial("value:5", 0.5, None, number=5),
        trial("value:6", 0.5, 0.5, number=6, state=TrialState.PRUNED),
        trial("value:7", 0.5, 0.5, number=7, clip_fraction=0.0),
        trial("value:8", number=8, state=TrialState.FAIL),
    ]


def texts(asked: Asked | None) -> list[str]:
    assert asked is not None
    assert asked.stage is Stage.CONFIRM
    return [str(each) for each in asked.settings]


@pytest.fixture
def fresh(trial: MakeTrial) -> Callable[..., list[Trial]]:
    """Add a setting's trial on fresh seeds; a None among the values is a diverged seed."""

    def add(
        trials: Sequence[Trial],
        setting: str,
        *values: float | None,
        seeds: Sequence[int] = FRESH,
        **more: object,
    ) -> list[Trial]:
        number = max(each.number for each in trials) + 1
        made = trial(setting, *values, number=number, stage=Stage.CONFIRM, seeds=tuple(seeds), **more)
        return [*trials, made]

    return add


@pytest.mark.parametrize(
    ("first", "extensions", "expected"),
    [
        (3, (), ((2, 3, 4),)),
        (3, (2, 1), ((2, 3, 4), (5, 6), (7,))),
        (0, (), ()),
        (0, (4,), ((2, 3, 4, 5),)),
        (2, (0, 2), ((2, 3), (4, 5))),
    ],
)
def test_rounds_never_share_a_seed(first: int, extensions: tuple[int, ...], expected: tuple) -> None:
    spec = dataclasses.replace(SPEC, num_confirm_seeds=first)
    assert rounds(spec, extensions) == expected


def test_candidates_are_sound_effective_and_complete_the_best_first(
    ended: list[Trial], fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "value:9", 0.1, 0.1, 0.1)
    names = [str(each.setting) for each in candidates(reversed(trials))]
    assert names == ["value:1", "value:2", "value:3", "value:4"]


def test_earlier_of_two_equal_candidates_leads(trial: MakeTrial) -> None:
    trials = [trial("value:2", 1.0, 2.0, number=4), trial("value:1", 2.0, 1.0, number=3)]
    assert [str(each.setting) for each in candidates(trials)] == ["value:1", "value:2"]


def test_off_today_and_the_leader_are_confirmed_once(ended: list[Trial], reference: Reference) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse("value:3"))
    asked = confirmation(spec, reference, ended)
    assert texts(asked) == ["none", "value:3", "value:1"]
    assert asked is not None
    assert asked.seeds == FRESH


@pytest.mark.parametrize("current", ["none", "value:1"])
def test_today_may_be_off_or_the_leader(ended: list[Trial], reference: Reference, current: str) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse(current))
    assert texts(confirmation(spec, reference, ended)) == ["none", "value:1"]


def test_nothing_to_confirm(ended: list[Trial], reference: Reference, trial: MakeTrial) -> None:
    without = dataclasses.replace(SPEC, num_confirm_seeds=0)
    assert confirmation(without, reference, ended) is None
    assert confirmation(SPEC, reference, [ended[0], *ended[5:]]) is None
    assert confirmation(SPEC, reference, [], (4,)) is None
    # A confirmation may still be asked for later.
    assert texts(confirmation(without, reference, ended, (4,))) == ["none", "value:1"]


def test_what_was_asked_is_not_asked_again_whatever_became_of_it(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "none", state=TrialState.RUNNING)
    assert texts(confirmation(SPEC, reference, trials)) == ["value:1"]
    trials = fresh(trials, "value:1", state=TrialState.FAIL)
    assert confirmation(SPEC, reference, trials) is None


def test_leader_gives_way_after_a_diverged_fresh_seed_at_most_twice(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "none", 2.0, 2.0, 2.0)
    for number, name in enumerate(("value:1", "value:2", "value:3")):
        assert [str(each.setting) for each in leaders(trials)] == ["value:1", "value:2", "value:3"][
            : number + 1
        ]
        assert texts(confirmation(SPEC, reference, trials)) == [name]
        trials = fresh(trials, name, 1.0, None, 1.0)
    assert len(leaders(trials)) == 3
    assert confirmation(SPEC, reference, trials) is None


def test_extension_repeats_only_what_is_compared(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse("value:4"))
    trials = ended
    for name in ("none", "value:4", "value:2"):
        trials = fresh(trials, name, 1.0, 1.0, 1.0)
    trials = fresh(trials, "value:1", 1.0, 1.0, None)
    assert confirmation(spec, reference, trials) is None
    asked = confirmation(spec, reference, trials, (2,))
    assert texts(asked) == ["none", "value:4", "value:2"]
    assert asked is not None
    assert asked.seeds == (5, 6)


def test_first_round_is_finished_before_an_extension(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "none", 2.0, 2.0, 2.0)
    asked = confirmation(SPEC, reference, trials, (2,))
    assert (texts(asked), asked and asked.seeds) == (["value:1"], FRESH)


def test_leader_that_diverges_in_an_extension_gives_way_in_every_round(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(fresh(ended, "none", 2.0, 2.0, 2.0), "value:1", 1.0, 1.0, 1.0)
    trials = fresh(trials, "none", 2.0, 2.0, seeds=(5, 6))
    trials = fresh(trials, "value:1", 1.0, None, seeds=(5, 6))
    asked = confirmation(SPEC, reference, trials, (2,))
    assert (texts(asked), asked and asked.seeds) == (["value:2"], FRESH)
    trials = fresh(trials, "value:2", 1.0, 1.0, 1.0)
    asked = confirmation(SPEC, reference, trials, (2,))
    assert (texts(asked), asked and asked.seeds) == (["value:2"], (5, 6))


def test_extension_trains_the_setting_that_the_answer_is_about(
    ended: list[Trial], reference: Reference, fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "none", 2.0, 2.0, 2.0)
    for name in ("value:1", "value:2", "value:3"):
        trials = fresh(trials, name, 1.0, None, 1.0)
    best = recommend(SPEC, reference, trials).best
    assert str(best) in texts(confirmation(SPEC, reference, trials, (2,)))


def test_settings_confirmed_trials_are_the_complete_ones(
    ended: list[Trial], fresh: Callable[..., list[Trial]]
) -> None:
    trials = fresh(ended, "value:1", 1.0, 1.0, 1.0)
    trials = fresh(trials, "value:1", 1.0, seeds=(5,))
    trials = fresh(trials, "value:1", seeds=(6,), state=TrialState.FAIL)
    assert [each.seeds for each in confirmed(trials, ClipSetting.parse("value:1"))] == [FRESH, (5,)]
    assert confirmed(trials, ClipSetting.parse("value:2")) == ()


def test_baseline_is_the_off_with_fewest_diverged_seeds_then_the_lowest_mean(trial: MakeTrial) -> None:
    trials = [
        trial("none", 1.0, None, number=0),
        trial("none@0.1", 3.0, 3.0, number=1),
        trial("none@0.3", 2.0, 2.0, number=2),
        trial("none@0.5", 2.0, 2.0, number=3),
        trial("none@0.9", 0.1, 0.1, number=4, state=TrialState.PRUNED),
        trial("value:1", 0.1, 0.1, number=5),
        trial("none@0.1", 0.1, 0.1, number=6, stage=Stage.CONFIRM, seeds=(2, 3)),
    ]
    found = baseline(trials)
    assert found is not None
    assert str(found.setting) == "none@0.3"
    assert baseline(trials[4:]) is None


@pytest.mark.parametrize(
    ("clip_fraction", "mean_scale", "leader", "matched"),
    [
        (0.9, 0.25, "value:1", "none@0.25"),
        (0.9, 0.123456, "value:1", "none@0.123"),
        (0.51, 0.25, "value:1@0.5", "none@0.125"),
        (0.9, 0.0, "value:1", "none@0.0001"),  # the least that a setting allows
        (0.9, 1.0, "value:1", "none"),  # off itself, which is confirmed anyway
        (0.5, 0.25, "value:1", None),  # not more than half of the steps
        (0.1, 0.25, "value:1", None),
    ],
)
def test_leader_that_clips_most_steps_is_matched(
    sgd_reference: Reference,
    trial: MakeTrial,
    fresh: Callable[..., list[Trial]],
    clip_fraction: float,
    mean_scale: float,
    leader: str,
    matched: str | None,
) -> None:
    trials = [trial("none", 2.0, 2.0), trial(leader, 1.0, 1.0, number=1)]
    assert matched_setting(sgd_reference, trials, trials[1]) is None  # not confirmed yet
    trials = fresh(trials, "none", 2.0, 2.0, 2.0)
    trials = fresh(trials, leader, 1.0, 1.0, 1.0, clip_fraction=clip_fraction, mean_scale=mean_scale)
    found = matched_setting(sgd_reference, trials, trials[1])
    assert (None if found is None else str(found)) == matched
    asked = confirmation(SPEC, sgd_reference, trials)
    assert (None if asked is None else texts(asked)) == (None if matched in (None, "none") else [matched])


def test_matched_rate_is_that_of_the_first_round_and_repeated_in_an_extension(
    sgd_reference: Reference, trial: MakeTrial, fresh: Callable[..., list[Trial]]
) -> None:
    trials = [trial("none", 2.0, 2.0), trial("value:1", 1.0, 1.0, number=1)]
    clips = {"clip_fraction": 0.9, "mean_scale": 0.25}
    for name in ("none", "value:1", "none@0.25"):
        trials = fresh(trials, name, 1.0, 1.0, 1.0, **clips)
    assert texts(confirmation(SPEC, sgd_reference, trials, (1,))) == ["none", "value:1", "none@0.25"]
    trials = fresh(trials, "none", 1.0, seeds=(5,))
    trials = fresh(trials, "value:1", 1.0, seeds=(5,), clip_fraction=0.9, mean_scale=0.75)
    assert texts(confirmation(SPEC, sgd_reference, trials, (1,))) == ["none@0.25"]


@pytest.mark.parametrize("optimizer", [None, "adam", "adamw"])
def test_only_plain_sgd_is_matched(
    sgd_reference: Reference,
    trial: MakeTrial,
    fresh: Callable[..., list[Trial]],
    optimizer: str | None,
) -> None:
    features = sgd_reference.features
    if features is not None:
        features = dataclasses.replace(features, optimizer=optimizer) if optimizer else None
    reference = dataclasses.replace(sgd_reference, features=features)
    trials = [trial("none", 2.0, 2.0), trial("value:1", 1.0, 1.0, number=1)]
    trials = fresh(trials, "value:1", 1.0, 1.0, 1.0, clip_fraction=0.9)
    assert matched_setting(reference, trials, trials[1]) is None
