"""Whole studies without training: what a lane does is drawn from its setting and its seed, and from nothing else.

Everything around the lanes is the real thing: the search asks, `plan_cohort` plans, `halving` prunes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tuner.evidence import LaneResult, NormSketch, Reference, Stage, Trial, TrialState
from tuner.search.halving import halving
from tuner.search.planning import plan_cohort
from tuner.search.search import Search
from tuner.spec import ClipSetting, StudySpec
from tuner.tuning import add


@dataclass(frozen=True, kw_only=True)
class World:
    """What training would do, as probabilities.

    Attributes:
        seed: of every draw.
        level: objective that training reaches on average.
        spread: its standard deviation over lanes.
        bowl: how much worse a threshold is per squared decade from the best one, 0.3.
        off_penalty: how much worse *off* is.
        diverge: probability that a lane diverges.
        collapse: probability that a lane ends where it started.
        inert: probability that a setting never clips.
        crash: probability that a trial fails.
        initial: objective before the first step.
        clip_fraction: of lanes that clip.
        later: how far rungs before the last one are from the final value, as a standard deviation.
    """

    seed: int = 0
    level: float = 2.0
    spread: float = 0.1
    bowl: float = 0.0
    off_penalty: float = 0.0
    diverge: float = 0.0
    collapse: float = 0.0
    inert: float = 0.0
    crash: float = 0.0
    initial: float | None = None
    clip_fraction: float = 0.5
    later: float = 0.0

    def draw(self, *key: object) -> random.Random:
        """Draws that depend on the key alone."""
        return random.Random("/".join(map(str, (self.seed, *key))))

    def value(self, setting: ClipSetting, seed: int) -> float | None:
        """The objective of a lane that is trained to the end; None if it diverges."""
        draw = self.draw(setting, seed)
        if draw.random() < self.diverge:
            return None
        if draw.random() < self.collapse:
            return self.initial
        distance = 0.0 if setting.threshold is None else math.log10(setting.threshold / 0.3)
        mean = self.level + self.bowl * distance**2 + (self.off_penalty if setting.is_off else 0.0)
        return mean + self.spread * draw.gauss()

    def lane(self, setting: ClipSetting, seed: int, num_steps: int) -> LaneResult:
        """What a lane did until some step."""
        value = self.value(setting, seed)
        clips = not setting.is_off and self.draw(setting).random() >= self.inert
        if value is not None and self.later:
            value += self.later * self.draw(setting, seed, num_steps).gauss() / num_steps
        return LaneResult(
            seed=seed,
            num_steps=1 if value is None else num_steps,
            value=value,
            divergence_step=0 if value is None else None,
            clip_fraction=self.clip_fraction if clips else 0.0,
            mean_scale=0.4 if clips else 1.0,
            norms=NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0),
            num_non_finite=int(value is None),
            seconds=0.25,
            initial=self.initial,
        )

    def crashes(self, trial: Trial) -> bool:
        """Whether a trial fails."""
        return self.draw(trial.setting, trial.seeds, "crash").random() < self.crash


def train(spec: StudySpec, reference: Reference, trials: Iterable[Trial], world: World) -> list[Trial]:
    """All open trials to their end, in the cohorts in which they would be trained."""
    known = {
        each.id: replace(each, state=TrialState.FAIL) if each.state.is_open and world.crashes(each) else each
        for each in trials
    }
    while (cohort := plan_cohort(spec, reference, {}, known.values())) is not None:
        going = {each.id: each for each in cohort.trials}
        protected = [each.id for each in cohort.trials if each.protected]
        prune = halving(cohort.rung_steps, cohort.clips)
        for step in cohort.rung_steps:
            lanes = {
                name: tuple(world.lane(each.setting, seed, step) for seed in cohort.seeds)
                for name, each in going.items()
            }
            for name, results in lanes.items():
                rungs = {**known[name].rungs, step: {lane.seed: lane.value for lane in results}}
                known[name] = replace(known[name], rungs=rungs, lanes=results)
            values = {
                name: [math.inf if lane.value is None else lane.value for lane in results]
                for name, results in lanes.items()
            }
            is_last = step == cohort.rung_steps[-1]
            pruned = () if is_last else prune(values, cohort.history.get(step, ()), protected)
            for name in list(going) if is_last else pruned:
                state = TrialState.COMPLETE if is_last else TrialState.PRUNED
                known[name] = replace(known[name], state=state)
                del going[name]
    return sorted(known.values(), key=lambda each: each.number)


def study(
    spec: StudySpec,
    reference: Reference,
    world: World,
    trials: Sequence[Trial] = (),
    *,
    extensions: Sequence[int] = (),
    warm_start: Sequence[ClipSetting] = (),
    on_ask: Callable[[Search], None] | None = None,
) -> list[Trial]:
    """A study from whatever trials there are to its end, which it must reach within a bound."""
    known = train(spec, reference, trials, world)
    # One cohort at least per ask of the search; then per round three leaders, their matched rate, and a little room.
    for _ in range(spec.num_trials + 6 * (1 + len(extensions))):
        search = Search.from_trials(spec, reference, known, extensions=extensions, warm_start=warm_start)
        if on_ask is not None:
            on_ask(search)
        asked = search.ask()
        if asked is None:
            return known
        by_id = {each.id: each for each in known}
        add(by_id, asked)
        known = train(spec, reference, by_id.values(), world)
    raise AssertionError(f"the study never ends: {len(known)} trials")


def searched(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that search."""
    return [each for each in trials if each.stage is Stage.SEARCH]


def confirming(trials: Iterable[Trial]) -> list[Trial]:
    """The trials on fresh seeds."""
    return [each for each in trials if each.stage is Stage.CONFIRM]
