"""Does 95 % mean 95 %? Studies of simulated trainings whose true differences are known.

The objective of a lane is its setting's level, plus an effect of the seed that all settings share (which pairing
removes), plus normal noise of its own. Earlier rungs are the same value on its way down, with more noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.search_curves import AbstractCurves, Curve
from benchmarks.search_studies import simulate_study, study_spec
from tuner.evidence import NormSketch, Reference, Verdict
from tuner.spec import ClipSetting

NUM_STEPS = 400
#: Objective of *off*, and of every lane before the first step.
LEVEL, INITIAL = 1.0, 3.0
#: The gradient norms of every lane: median and largest. A larger threshold is *off* under another name.
MEDIAN_NORM, LARGEST_NORM = 1.0, 4.0
NORMS = NormSketch(median=MEDIAN_NORM, q90=2.0, q99=3.0, max=LARGEST_NORM)
REFERENCE = Reference(l2_norm=NORMS, max_abs=NORMS, num_batches=100)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is true of a simulated problem.

    Attributes:
        gain: how much lower the best threshold ends than *off*.
        optimum: that threshold.
        width: of the valley around it, in natural logarithms of the threshold.
        harm: by how much thresholds far below the optimum end higher than *off*.
        noise: standard deviation of a lane's own noise.
        seed_effect: standard deviation of what all settings of a seed share.
    """

    gain: float
    optimum: float = 0.3
    width: float = 1.0
    harm: float = 0.5
    noise: float = 0.02
    seed_effect: float = 0.05

    def difference(self, setting: ClipSetting) -> float:
        """By how much a setting truly ends higher than *off*; negative is better."""
        threshold = setting.threshold
        if threshold is None or threshold > LARGEST_NORM:
            return 0.0
        place = math.log(threshold / self.optimum) / self.width
        valley = -self.gain * math.exp(-(place**2) / 2)
        return valley + self.harm * max(0.0, -place - 1.5) ** 2 / 10


SCENARIOS = {
    "no effect": Scenario(gain=0.0, harm=0.0),
    "no effect, tight thresholds harm": Scenario(gain=0.0),
    "small effect": Scenario(gain=0.03),
    "large effect": Scenario(gain=0.15),
}


class GaussianCurves(AbstractCurves):
    """Learning curves of a scenario; the same seed gives the same ones.

    Args:
        scenario: what is true.
        seed: of the noise.
    """

    reference = REFERENCE
    num_steps = NUM_STEPS

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._known: dict[tuple[ClipSetting, int], Curve] = {}

    def curve(self, setting: ClipSetting, seed: int) -> Curve:  # noqa: D102
        if setting.threshold is not None and setting.threshold > LARGEST_NORM:
            setting = replace(setting, method="none", threshold=None)
        if (setting, seed) not in self._known:
            self._known[setting, seed] = self._make(setting, seed)
        return self._known[setting, seed]

    def _make(self, setting: ClipSetting, seed: int) -> Curve:
        scenario, threshold = self._scenario, setting.threshold
        shared = np.random.default_rng((self._seed, seed)).standard_normal()
        # A trailing 0 would make it the seed's own stream again.
        place = 1 if threshold is None else 2 + int(1e6 * threshold)
        own = np.random.default_rng((self._seed, seed, place)).standard_normal(NUM_STEPS.bit_length())
        end = LEVEL + scenario.difference(setting) + scenario.seed_effect * shared + scenario.noise * own[0]
        is_clipped = threshold is not None
        return Curve(
            values=_Descent(end, scenario.noise * own[1:]),
            initial=INITIAL,
            first_clipped_step=0 if is_clipped else None,
            clip_fraction=0.4 if is_clipped else 0.0,
            mean_scale=0.9 if is_clipped else 1.0,
            norms=NORMS,
        )


class _Descent(dict[int, float | None]):
    """Objective by step, on its way to the end; worked out when asked for."""

    def __init__(self, end: float, noise: np.ndarray) -> None:
        super().__init__()
        self._end = end
        self._noise = noise

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and 1 <= step <= NUM_STEPS

    def __missing__(self, step: int) -> float:
        left = 1 - step / NUM_STEPS
        noise = float(self._noise[step.bit_length() - 2]) if left else 0.0
        return self._end + left**4 * (INITIAL - LEVEL) + noise * left


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What simulated studies said, against what was true.

    Attributes:
        studies: simulated.
        judged: those that gave an interval of the best setting's difference from *off*.
        coverage: share of those intervals that hold the true difference; goal 0.93 to 0.97.
        verdicts: share of studies by verdict; without an effect the goal for *clip* is at most 0.05.
        mean_full_runs: what a study spent.
    """

    studies: int
    judged: int
    coverage: float | None
    verdicts: Mapping[str, float]
    mean_full_runs: float

    def to_json(self) -> dict[str, Any]:
        """A line of the results."""
        return asdict(self)


def calibrate(scenario: Scenario, count: int, fields: Mapping[str, Any], *, seed: int = 0) -> Calibration:
    """Simulate studies of one scenario.

    Args:
        scenario: what is true.
        count: studies, >= 1.
        fields: of the studies, other than their defaults.
        seed: of the first study; the others follow.

    Returns:
        How often they were right.
    """
    covered: list[bool] = []
    verdicts: list[Verdict] = []
    full_runs: list[float] = []
    for number in range(seed, seed + count):
        curves = GaussianCurves(scenario, number)
        answer = simulate_study(study_spec(curves, number, fields), curves)
        verdicts.append(answer.verdict)
        full_runs.append(answer.full_runs)
        if answer.best is not None and answer.difference is not None:
            true = scenario.difference(answer.best)
            covered.append(answer.difference.low <= true <= answer.difference.high)
    return Calibration(
        studies=count,
        judged=len(covered),
        coverage=round(sum(covered) / len(covered), 4) if covered else None,
        verdicts={each.value: round(verdicts.count(each) / count, 4) for each in Verdict},
        mean_full_runs=round(sum(full_runs) / count, 2),
    )
