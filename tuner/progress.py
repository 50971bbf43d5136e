"""A progress bar for a library call, in a terminal or a notebook: what is trained, how far it is, the best so far."""

from __future__ import annotations

import statistics
import sys
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

from tuner.spec import StudySpec
from tuner.training.cohort import EngineChosen, Event, ProbeMeasured, Progressed, RungReached, TrialEnded


class ProgressBar:
    """Shows the events of a study as one bar, counted in lane-steps; use it as a context.

    The bar's length is what the study needs if no setting ends early; it shrinks when one does.

    Args:
        spec: the study.
        is_shown: whether to show anything; None shows it where somebody watches (a terminal or a notebook).
    """

    def __init__(self, spec: StudySpec, *, is_shown: bool | None = None) -> None:
        self._spec = spec
        self._num_trials = 0
        self._before = 0
        self._in_cohort = 0
        self._trial_steps = spec.num_seeds * spec.num_steps
        hidden = not (sys.stderr.isatty() or "ipykernel" in sys.modules) if is_shown is None else not is_shown
        self._bar = tqdm(
            total=spec.num_trials * self._trial_steps,
            desc=f"{spec.workload}: probe",
            unit="lane-step",
            unit_scale=True,
            disable=hidden,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, ProbeMeasured):
            self._say(f"probe: median norm {event.reference.norms.median:.3g}")
        elif isinstance(event, EngineChosen):
            how = f"{event.num_lanes} lanes together" if event.path == "lanes" else "one lane at a time"
            self._say(f"{how} ({event.reason})")
        elif isinstance(event, Progressed):
            self._in_cohort = event.lane_steps
            self._show()
        elif isinstance(event, RungReached):
            self._reach(event)
        elif isinstance(event, TrialEnded):
            self._num_trials += 1
            self._before += sum(lane.num_steps for lane in event.lanes)

    def _reach(self, rung: RungReached) -> None:
        by_trial: dict[str, list[float]] = {}
        for lane in rung.values:
            by_trial.setdefault(lane.trial_id, []).append(float("inf") if lane.value is None else lane.value)
        best = min((statistics.fmean(values) for values in by_trial.values()), default=float("inf"))
        self._bar.set_description(
            f"{self._spec.workload}: step {rung.step} of {self._spec.num_steps}", refresh=False
        )
        self._bar.set_postfix_str(f"{len(by_trial)} settings, best {best:.4g}", refresh=False)
        self._in_cohort = sum(rung.step for lane in rung.values if lane.value is not None)
        self._show()

    def _show(self) -> None:
        open_trials = self._spec.num_trials - self._num_trials
        self._bar.total = max(self._before + open_trials * self._trial_steps, self._bar.n)
        self._bar.n = max(self._bar.n, min(self._before + self._in_cohort, self._bar.total))
        self._bar.refresh()

    def _say(self, text: str) -> None:
        self._bar.set_postfix_str(text)
