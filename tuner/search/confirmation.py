"""What is trained on fresh seeds at the end of a study: pure.

The best of many settings was chosen because it did well on its seeds, some of it by luck. So what decides the verdict
is trained again on seeds that the search never saw: the leader, *off*, today's value, and, for a leader that clips most
steps, *off* at the learning rate that such clipping amounts to. Nothing is chosen by the fresh seeds, with one
exception: a leader with a diverged fresh seed gives way to the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.records import mean_known
from tuner.search.space import round_threshold
from tuner.search.statistics import mean_value
from tuner.spec import OFF_SETTING, RATE_SCALES, ClipSetting, StudySpec

#: Leaders that are tried at most, one after the other.
MAX_LEADERS = 3
#: A leader that clips more than this share of the steps is compared with *off* at the matched learning rate.
MATCHED_CLIP_FRACTION = 0.5
#: Optimizers whose step is proportional to the gradient, so that scaling it is scaling the rate.
PROPORTIONAL = frozenset({"sgd"})


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Settings to train next, together.

    Attributes:
        settings: different from each other, at least one.
        stage: what for.
        seeds: the training seeds of all of them.
    """

    settings: tuple[ClipSetting, ...]
    stage: Stage
    seeds: tuple[int, ...]


def confirmation(
    spec: StudySpec, reference: Reference, trials: Sequence[Trial], extensions: Sequence[int] = ()
) -> Asked | None:
    """What is still to be trained on fresh seeds.

    Args:
        spec: the question; its ``num_confirm_seeds`` are the first round.
        reference: the probe's result; says which optimizer it is.
        trials: all trials of a study whose search has ended.
        extensions: further rounds, each with its number of seeds.

    Returns:
        The settings that the first unfinished round lacks; None if nothing is lacking, or if there is no clip setting
        to confirm.
    """
    chain = leaders(trials)
    if not chain:
        return None
    leader = lead(trials, chain)
    matched = matched_setting(reference, trials, leader)
    for number, seeds in enumerate(rounds(spec, extensions)):
        asked = {each.setting for each in trials if each.stage is Stage.CONFIRM and each.seeds == seeds}
        # A leader that gave way is not trained on further seeds.
        wanted = _wanted(spec, trials, (leader,) if number else chain, matched)
        missing = tuple(setting for setting in wanted if setting not in asked)
        if missing:
            return Asked(settings=missing, stage=Stage.CONFIRM, seeds=seeds)
    return None


def rounds(spec: StudySpec, extensions: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """The fresh seeds of each round of confirmation.

    Args:
        spec: gives the search's seeds, which come before, and the first round's number.
        extensions: the further rounds' numbers.

    Returns:
        Seeds that occur once over all rounds.

    Example:
        >>> rounds(StudySpec(workload="w", num_seeds=3, num_confirm_seeds=2), (3,))
        ((3, 4), (5, 6, 7))
    """
    first, found = spec.num_seeds, []
    for size in (spec.num_confirm_seeds, *extensions):
        found.append(tuple(range(first, first + size)))
        first += size
    return tuple(seeds for seeds in found if seeds)


def candidates(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The search's clip trials that can lead: complete, no diverged seed, and something was ever clipped.

    Args:
        trials: all trials of a study.

    Returns:
        The best first, by the mean over the search's seeds.
    """
    found = [
        trial
        for trial in trials
        if trial.stage is Stage.SEARCH
        and trial.state is TrialState.COMPLETE
        and not trial.setting.is_off
        and trial.num_diverged == 0
        and any(lane.may_have_clipped for lane in trial.lanes)
    ]
    return tuple(
        sorted(found, key=lambda trial: (mean_value(lane.value for lane in trial.lanes), trial.number))
    )


def baseline(trials: Iterable[Trial]) -> Trial | None:
    """The search's best trial without clipping: with a tuned learning rate, there are several.

    Args:
        trials: all trials of a study.

    Returns:
        The complete one with the fewest diverged seeds, then the lowest mean; None without any.
    """
    found = [
        trial
        for trial in trials
        if trial.stage is Stage.SEARCH and trial.state is TrialState.COMPLETE and trial.setting.is_off
    ]
    return min(
        found,
        key=lambda trial: (
            trial.num_diverged,
            mean_value(lane.value for lane in trial.lanes if lane.value is not None),
            trial.number,
        ),
        default=None,
    )


def confirmed(trials: Iterable[Trial], setting: ClipSetting) -> tuple[Trial, ...]:
    """A setting's ended trials on fresh seeds, one per round.

    Args:
        trials: all trials of a study.
        setting: whose.

    Returns:
        Complete trials of the confirmation.
    """
    return tuple(
        trial
        for trial in trials
        if trial.stage is Stage.CONFIRM and trial.setting == setting and trial.state is TrialState.COMPLETE
    )


def leaders(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The candidates that may be confirmed, in the order in which they give way to each other.

    Args:
        trials: all trials of a study.

    Returns:
        At most 3: the best, and each further one only if those before it have a diverged fresh seed.
    """
    found: list[Trial] = []
    for trial in candidates(trials)[:MAX_LEADERS]:
        found.append(trial)
        if not any(each.num_diverged for each in confirmed(trials, trial.setting)):
            break
    return tuple(found)


def lead(trials: Sequence[Trial], chain: Sequence[Trial]) -> Trial:
    """The leader that an answer is about.

    Args:
        trials: all trials of a study.
        chain: from `leaders`, at least one.

    Returns:
        The first without a diverged fresh seed; if each has one, the first.
    """
    sound = (
        trial for trial in chain if not any(each.num_diverged for each in confirmed(trials, trial.setting))
    )
    return next(sound, chain[0])


def matched_setting(reference: Reference, trials: Sequence[Trial], leader: Trial) -> ClipSetting | None:
    """*Off* at the learning rate that a leader's clipping amounts to on average.

    Args:
        reference: says which optimizer it is.
        trials: all trials of a study.
        leader: of the search.

    Returns:
        The setting; None unless the leader has been confirmed, clipped more than half of the steps, and trains with
        plain SGD, where a scaled gradient is a scaled rate.
    """
    lanes = [lane for trial in confirmed(trials, leader.setting) for lane in trial.lanes]
    if reference.features is None or reference.features.optimizer not in PROPORTIONAL or not lanes:
        return None
    # By the first round, so that an extension repeats it.
    first = confirmed(trials, leader.setting)[0].lanes
    fraction, factor = (
        mean_known(lane.clip_fraction for lane in lanes),
        mean_known(lane.mean_scale for lane in first),
    )
    if fraction is None or factor is None or fraction <= MATCHED_CLIP_FRACTION:
        return None
    scale = leader.setting.learning_rate_scale * factor
    low, high = RATE_SCALES
    return ClipSetting(
        method=OFF_SETTING.method, learning_rate_scale=min(max(round_threshold(scale), low), high)
    )


def _wanted(
    spec: StudySpec, trials: Sequence[Trial], chain: Sequence[Trial], matched: ClipSetting | None
) -> tuple[ClipSetting, ...]:
    """Settings of a round, each once: *off*, today's value, the leaders and the matched rate."""
    off = baseline(trials)
    named = (
        off.setting if off is not None else None,
        spec.current,
        *(each.setting for each in chain),
        matched,
    )
    return tuple(dict.fromkeys(setting for setting in named if setting is not None))
