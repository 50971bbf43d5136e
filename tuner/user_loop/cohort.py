"""Train a cohort of a training function: one lane after the other, in this thread, and tell the events of any cohort.

The function runs on this thread's stack, so events are handed to a callback as they happen. A trial's lanes follow each
other, *off* first; a lane that is out of the race at a rung ends its trial there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Literal

from tuner.errors import LaneError
from tuner.evidence import LaneResult
from tuner.inline import Clipper
from tuner.search.racing import is_hopeless
from tuner.training.cohort import (
    Cohort,
    CohortTrial,
    EngineChosen,
    Event,
    LaneStarted,
    LaneValue,
    Progressed,
    RungReached,
    TrialEnded,
)
from tuner.training.loop import PROGRESS_SECONDS
from tuner.training.solo import Clock
from tuner.user_loop import lane
from tuner.user_loop.reports import Reports
from tuner.user_loop.trial import ContractError, FunctionTrial
from tuner.workloads.function import FunctionWorkload

Tell = Callable[[Event], None]


def train_function_cohort(
    cohort: Cohort, workload: FunctionWorkload, *, tell: Tell, clock: Clock = time.monotonic
) -> None:
    """Train all trials of a cohort under all its seeds, one lane at a time.

    A lane diverges if it reports an objective that is not finite, or more than ``divergence_factor`` times the positive
    one that it reported at step 0. Diverged lanes are data. At the first report at or after a rung, the last rung
    excepted, `tuner.search.racing.is_hopeless` says whether the trial goes on. Nothing is kept of a lane that does not
    end, so there are no checkpoints.

    Args:
        cohort: what to train.
        workload: the cohort's function with the cohort's parameters.
        tell: called with `EngineChosen` once, `LaneStarted` once per lane, `Progressed` at each report and about once a
            second, and `RungReached` for its rungs and `TrialEnded` when a trial ends.
        clock: monotonic seconds, for progress and wall time only.

    Raises:
        LaneError: if the function raised, or does not do what a trial needs of it; it names the trial.
    """
    run = _CohortRun(cohort, workload, tell, clock)
    tell(EngineChosen(path="solo", num_lanes=1, reason="a training function trains one lane at a time"))
    for trial in sorted(cohort.trials, key=lambda each: not each.setting.is_off):
        run.train(trial)


class _CohortRun:
    """One training of a cohort.

    Args:
        cohort: all its trials.
        workload: the function.
        tell: takes events.
        clock: monotonic seconds.
    """

    def __init__(self, cohort: Cohort, workload: FunctionWorkload, tell: Tell, clock: Clock) -> None:
        self.cohort = cohort
        self.workload = workload
        self.tell = tell
        self.clock = clock
        self.rungs: dict[int, dict[str, dict[int, float]]] = {step: {} for step in cohort.rung_steps}
        self.ended_steps = 0
        self.lanes_left = len(cohort.trials) * len(cohort.seeds)
        self.last_told = clock()

    def train(self, trial: CohortTrial) -> None:
        """Train a trial's lanes until it ends, and tell how."""
        results: list[LaneResult] = []
        pruned_at = None
        for seed in self.cohort.seeds:
            self.tell(LaneStarted(trial_id=trial.id, seed=seed))
            one = _LaneRun(self, trial, seed)
            results.append(one.train())
            self.ended_steps += results[-1].num_steps
            self.lanes_left -= 1
            if (pruned_at := one.pruned_at) is not None:
                self.lanes_left -= len(self.cohort.seeds) - len(results)
                break
        self._tell_rungs(trial, pruned_at)
        state: Literal["complete", "pruned"] = "complete" if pruned_at is None else "pruned"
        self.tell(TrialEnded(trial_id=trial.id, state=state, lanes=tuple(results)))

    def _tell_rungs(self, trial: CohortTrial, pruned_at: int | None) -> None:
        for index, step in enumerate(self.cohort.rung_steps):
            if (by_seed := self.rungs[step].get(trial.id)) is None:
                continue
            values = (
                LaneValue(trial_id=trial.id, seed=seed, value=value if math.isfinite(value) else None)
                for seed, value in by_seed.items()
            )
            pruned = (trial.id,) if step == pruned_at else ()
            self.tell(RungReached(index=index, step=step, values=tuple(values), pruned=pruned))

    def tell_progress(self, num_steps: int, *, at_once: bool) -> None:
        """Tell how far the cohort is, if it is time; also what shows that the function still trains."""
        now = self.clock()
        if not at_once and now - self.last_told < PROGRESS_SECONDS:
            return
        self.last_told = now
        done = self.ended_steps + num_steps
        total = self.ended_steps + self.lanes_left * self.cohort.rung_steps[-1]
        self.tell(Progressed(lane_steps=done, total_lane_steps=max(done, total), step=num_steps))

    def is_hopeless(self, trial_id: str, step: int) -> bool:
        """Whether a trial ends at a rung that it has just reached; never at the last one."""
        steps = self.cohort.rung_steps
        if step == steps[-1]:
            return False
        return is_hopeless(
            trial_id,
            self._known(trial_id, step),
            clips=self.cohort.clips,
            protected={trial.id for trial in self.cohort.trials if trial.protected},
            reduction_factor=steps[-1] / steps[-2],
        )

    def _known(self, trial_id: str, step: int) -> Mapping[str, Mapping[int, float]]:
        """The objectives at a rung. Those of earlier cohorts are means over all seeds: only whole trials meet them."""
        rung = self.rungs[step]
        if len(rung[trial_id]) < len(self.cohort.seeds):
            return rung
        earlier = enumerate(self.cohort.history.get(step, ()))
        return rung | {
            f"earlier {number}": dict.fromkeys(self.cohort.seeds, mean) for number, mean in earlier
        }


class _LaneRun:
    """One lane of a cohort: what happens when its function clips, reports and ends.

    Args:
        run: the cohort's.
        trial: which.
        seed: its training seed.

    Attributes:
        pruned_at: the rung at which its trial ended; None while it may go on.
    """

    def __init__(self, run: _CohortRun, trial: CohortTrial, seed: int) -> None:
        self.pruned_at: int | None = None
        self._run = run
        self._id = trial.id
        self._rate_scale = trial.setting.learning_rate_scale
        self._reports = Reports(run.cohort.rung_steps, run.cohort.divergence_factor)
        self._trial = FunctionTrial(
            setting=trial.setting,
            seed=seed,
            parameters=run.workload.parameter_values,
            num_steps=run.cohort.rung_steps[-1],
            clipper=Clipper.from_setting(
                trial.setting, reference_norm=run.cohort.reference_norm, run_steps=run.cohort.rung_steps[-1]
            ),
            on_clip=self._clipped,
            on_report=self._reported,
        )

    def train(self) -> LaneResult:
        """Call the function.

        Returns:
            What the lane reached.

        Raises:
            LaneError: see `train_function_cohort`.
        """
        started = self._run.clock()
        returned = lane.call(self._run.workload, self._trial, self._id)
        seconds = self._run.clock() - started
        last = self._reports.last_step
        if returned is not None and (last is None or last < self._trial.num_steps):
            self._put(self._reports.add(self._trial.num_steps, returned))
        elif self.pruned_at is None:
            self._put(self._reports.close())
        self._require_contract()
        return LaneResult.of(
            self._trial.clipper.record(),
            seed=self._trial.seed,
            value=self._reports.value,
            divergence_step=self._reports.divergence_step,
            seconds=seconds,
            initial=self._reports.initial,
        )

    def _clipped(self, num_steps: int) -> None:
        self._run.tell_progress(num_steps, at_once=False)

    def _reported(self, step: int, value: float) -> str | None:
        """Take a report; why the lane ends here, if it does."""
        reached = self._reports.add(step, value)
        self._run.tell_progress(self._trial.clipper.num_steps, at_once=True)
        for each in reached:
            self._put((each,))
            if self._run.is_hopeless(self._id, each):
                self.pruned_at = each
                return f"pruned at step {step}"
        if self._reports.divergence_step is not None:
            return f"diverged at step {step}"
        return None

    def _put(self, reached: tuple[int, ...]) -> None:
        for step in reached:
            self._run.rungs[step].setdefault(self._id, {})[self._trial.seed] = self._reports.rungs[step]

    def _require_contract(self) -> None:
        """Refuse a lane that says nothing about its setting.

        Raises:
            LaneError: what it did not do, and what to change.
        """
        trial, fault = self._trial, None
        if self._reports.last_step is None:
            fault = "reported nothing: call trial.report(step, value), or return the objective after the last step"
        elif trial.clipper.num_steps == 0 and self._reports.divergence_step is None:
            fault = "never clipped: call trial.clip(model) between loss.backward() and optimizer.step()"
        elif self._rate_scale != 1 and not trial.knows_rate_scale:
            fault = (
                "never read trial.learning_rate_scale, and this study tunes the learning rate: multiply yours by it, "
                "or leave learning_rate_low and learning_rate_high out of the study"
            )
        if fault is not None:
            raise LaneError(
                self._id, trial.seed, trial.clipper.num_steps, ContractError(f"the function {fault}")
            )
