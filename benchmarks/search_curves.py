"""Cohorts that are looked up instead of trained: the events that training would give, from known learning curves.

With them a study's own loop (search, halving, confirmation, recommendation) runs thousands of times in minutes. What a
lane recorded is known for full runs only, so a lane that ends early has the clip fraction and the norms of its full
run; nothing that searches decide early rests on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.search_truth import QUANTILES, Truth, reference_of
from tuner.evidence import LaneResult, NormSketch, Reference
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, LaneValue, RungReached, TrialEnded
from tuner.training.loop import Prune
from tuner.training.sharing import followers


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one lane does if it is trained to the end.

    Attributes:
        values: objective by step; None where it had ended with a non-finite loss or gradient.
        initial: objective before the first step.
        divergence_step: of that end; None without.
        first_clipped_step: None if no step's gradient was scaled.
        clip_fraction: share of steps.
        mean_scale: mean factor on the gradient norm.
        norms: before clipping; None if no step was finite.
    """

    values: Mapping[int, float | None]
    initial: float
    divergence_step: int | None = None
    first_clipped_step: int | None = None
    clip_fraction: float = 0.0
    mean_scale: float = 1.0
    norms: NormSketch | None = None

    def value_at(self, step: int, divergence_factor: float) -> float | None:
        """The objective at a step; None if the lane is diverged there.

        Args:
            step: one at which the curve is known.
            divergence_factor: see `tuner.spec.StudySpec`.

        Returns:
            The value.

        Raises:
            ValueError: if the curve is not known at that step.
        """
        if step not in self.values:
            known = ", ".join(map(str, self.values))
            raise ValueError(f"the curves are known at steps {known}, not at {step}: choose other rungs")
        value = self.values[step]
        is_sound = value is not None and (self.initial <= 0 or value <= divergence_factor * self.initial)
        return value if is_sound else None


class AbstractCurves(ABC):
    """The learning curve of every setting under every training seed.

    Attributes:
        reference: what the probe of such a study measures.
        num_steps: of a full run.
    """

    reference: Reference
    num_steps: int

    @abstractmethod
    def curve(self, setting: ClipSetting, seed: int) -> Curve:
        """The same answer on every call."""


class TableCurves(AbstractCurves):
    """The truth's curves, its seeds in another order: what is a study's first seed is another one in every repeat.

    A threshold stands for the nearest one of the table, on the logarithmic scale; a learning rate without clipping
    likewise.

    Args:
        truth: the table.
        seeds: the truth's seed for each of the study's, each once.
    """

    def __init__(self, truth: Truth, seeds: Sequence[int]) -> None:
        self.truth = truth
        self.reference = reference_of(truth)
        self.num_steps = truth.num_steps
        self._seeds = tuple(seeds)
        self._settings = tuple(map(ClipSetting.parse, truth.settings))
        self._known: dict[tuple[int, int], Curve] = {}

    def row(self, setting: ClipSetting) -> int:
        """The table's row that stands for a setting.

        Args:
            setting: *off* at any learning rate, or a threshold at the workload's own.

        Returns:
            Its index in the truth's settings.

        Raises:
            ValueError: if the table has nothing of the kind.
        """
        far = [(_distance(setting, known), row) for row, known in enumerate(self._settings)]
        distance, row = min(far)
        if math.isinf(distance):
            raise ValueError(
                f"the table holds no setting like {setting}: it has {', '.join(self.truth.settings)}"
            )
        return row

    def curve(self, setting: ClipSetting, seed: int) -> Curve:  # noqa: D102
        if seed >= len(self._seeds):
            raise ValueError(f"the table holds {len(self._seeds)} seeds, and seed {seed} was asked for")
        place = self.row(setting), self._seeds[seed]
        if place not in self._known:
            self._known[place] = self._read(*place)
        return self._known[place]

    def _read(self, row: int, seed: int) -> Curve:
        truth = self.truth
        norms = truth.norms[row][seed]
        return Curve(
            values=dict(zip(truth.rung_steps, truth.values[row][seed], strict=True)),
            initial=truth.initial[seed],
            divergence_step=truth.divergence[row][seed],
            first_clipped_step=truth.first_clipped[row][seed],
            clip_fraction=truth.clip_fraction[row][seed],
            mean_scale=truth.mean_scale[row][seed],
            norms=None if norms is None else NormSketch(**dict(zip(QUANTILES, norms, strict=True))),
        )


class SimulatedCohort:
    """A cohort whose lanes follow known curves.

    Args:
        cohort: what would be trained.
        curves: of every lane.
        prune: decides at rungs, as for `tuner.training.loop.train_cohort`.
    """

    def __init__(self, cohort: Cohort, curves: AbstractCurves, prune: Prune) -> None:
        self._cohort = cohort
        self._curves = curves
        self._prune = prune
        self._live = [trial.id for trial in cohort.trials]
        self._settings = {trial.id: trial.setting for trial in cohort.trials}
        # The step at which a lane was found to have diverged.
        self._diverged: dict[tuple[str, int], int] = {}

    @cached_property
    def _followers(self) -> frozenset[str]:
        return frozenset(followers(self._cohort))

    def events(self) -> Iterator[RungReached | TrialEnded]:
        """What training the cohort tells, rung by rung; progress apart."""
        for index, step in enumerate(self._cohort.rung_steps):
            values = {trial: self._values(trial, step) for trial in self._live}
            is_last = step == self._cohort.rung_steps[-1]
            pruned = () if is_last else self._pruned(step, values)
            yield RungReached(
                index=index,
                step=step,
                values=tuple(
                    LaneValue(trial_id=trial, seed=seed, value=value)
                    for trial, by_seed in values.items()
                    for seed, value in by_seed.items()
                ),
                pruned=pruned,
            )
            for trial in tuple(self._live) if is_last else pruned:
                self._live.remove(trial)
                yield TrialEnded(
                    trial_id=trial,
                    state="complete" if is_last else "pruned",
                    lanes=tuple(
                        self._result(trial, seed, step, value) for seed, value in values[trial].items()
                    ),
                )
            if not self._live:
                return

    def _values(self, trial: str, step: int) -> dict[int, float | None]:
        return {seed: self._value(trial, seed, step) for seed in self._cohort.seeds}

    def _value(self, trial: str, seed: int, step: int) -> float | None:
        """The objective of a lane; once it has diverged it stays so."""
        if (trial, seed) in self._diverged:
            return None
        curve = self._curves.curve(self._settings[trial], seed)
        value = curve.value_at(step, self._cohort.divergence_factor)
        if value is None:
            own = curve.divergence_step
            self._diverged[trial, seed] = own if own is not None and own < step else step
        return value

    def _pruned(self, step: int, values: Mapping[str, Mapping[int, float | None]]) -> tuple[str, ...]:
        means = {
            trial: tuple(math.inf if value is None else value for value in by_seed.values())
            for trial, by_seed in values.items()
        }
        protected = {trial.id for trial in self._cohort.trials if trial.protected}
        chosen = set(self._prune(means, self._cohort.history.get(step, ()), protected))
        return tuple(trial for trial in self._live if trial in chosen)

    def _result(self, trial: str, seed: int, step: int, value: float | None) -> LaneResult:
        curve = self._curves.curve(self._settings[trial], seed)
        divergence_step = self._diverged.get((trial, seed))
        num_steps = step if divergence_step is None else divergence_step
        first = curve.first_clipped_step
        is_clipped = first is not None and first < num_steps
        return LaneResult(
            seed=seed,
            value=value,
            initial=curve.initial,
            seconds=0.0,
            num_steps=num_steps,
            num_shared_steps=(first if first is not None and is_clipped else num_steps)
            if trial in self._followers
            else 0,
            divergence_step=divergence_step,
            clip_fraction=curve.clip_fraction if is_clipped else 0.0,
            mean_scale=curve.mean_scale if is_clipped else 1.0,
            norms=curve.norms,
            num_non_finite=int(divergence_step is not None and divergence_step == curve.divergence_step),
            first_clipped_step=first if is_clipped else None,
        )


def _distance(setting: ClipSetting, known: ClipSetting) -> float:
    """How far a setting of the table is from another one, as a logarithm; inf if it is of another kind."""
    if setting.method != known.method:
        return math.inf
    if setting.threshold is None or known.threshold is None:
        return abs(math.log(setting.learning_rate_scale / known.learning_rate_scale))
    if setting.learning_rate_scale != known.learning_rate_scale:
        return math.inf
    return abs(math.log(setting.threshold / known.threshold))
