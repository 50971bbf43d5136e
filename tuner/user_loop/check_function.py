"""What a check looks at in a training function: its calls, its seeds, repeatability, pruning, what clipping does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tuner.evidence import Reference
from tuner.inline import Clipper
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.user_loop import lane
from tuner.user_loop.check import Look
from tuner.user_loop.findings import Finding
from tuner.user_loop.probe import measure_function
from tuner.user_loop.trial import FunctionTrial
from tuner.workloads.function import FunctionWorkload

#: Gradients that the probe of a check measures.
_NUM_BATCHES = 10


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run of the function was seen to do.

    Attributes:
        norms: gradient norms before clipping, one per call of ``trial.clip``.
        reports: step and value of each report, the returned value included.
        clip_fraction: share of calls that scaled the gradient; None without a call.
        knows_rate_scale: whether it read the setting or its factor on the learning rate.
        num_refused: calls after it was stopped.
        seconds: from the call to the return.
    """

    norms: tuple[float, ...]
    reports: tuple[tuple[int, float], ...]
    clip_fraction: float | None
    knows_rate_scale: bool
    num_refused: int
    seconds: float


class FunctionCheck:
    """Looks at one training function.

    Args:
        workload: the function with its parameters.
        num_steps: of a run.

    Attributes:
        steps_per_second: measured on the way; None before.
    """

    def __init__(self, workload: FunctionWorkload, num_steps: int) -> None:
        self.steps_per_second: float | None = None
        self._workload = workload
        self._num_steps = num_steps
        self._reference: Reference | None = None
        self._first: _Run | None = None

    def looks(self) -> Iterator[Look]:
        """What is looked at, in order; each run trains anew."""
        yield "clip", self._clip
        yield "report", self._report
        yield "learning rate", self._learning_rate
        yield "clipping", self._clipping
        yield "repeatable", self._repeatable
        yield "seeds", self._seeds
        yield "pruning", self._pruning
        yield "lanes", self._lanes

    def _run(self, setting: ClipSetting, seed: int = 0, *, stop: bool = False) -> _Run:
        """Train once; on request, ask it to stop at its first report behind step 0, or at its second clip."""
        reports: list[tuple[int, float]] = []

        def on_report(step: int, value: float) -> str | None:
            reports.append((int(step), float(value)))
            return "the check tries whether it stops" if stop and step > 0 else None

        def on_clip(num_steps: int) -> str | None:
            return "the check tries whether it stops" if stop and num_steps == 2 else None

        clipper = Clipper.from_setting(setting)
        trial = FunctionTrial(
            setting=setting,
            seed=seed,
            parameters=self._workload.parameter_values,
            num_steps=self._num_steps,
            clipper=clipper,
            on_clip=on_clip,
            on_report=on_report,
        )
        started = time.perf_counter()
        returned = lane.call(self._workload, trial, "check")
        seconds = time.perf_counter() - started
        if returned is not None and (not reports or reports[-1][0] < self._num_steps):
            reports.append((self._num_steps, returned))
        return _Run(
            norms=tuple(clipper.drain_norms()),
            reports=tuple(reports),
            clip_fraction=clipper.record().clip_fraction if clipper.num_steps else None,
            knows_rate_scale=trial.knows_rate_scale,
            num_refused=trial.num_refused,
            seconds=seconds,
        )

    @property
    def _setting(self) -> ClipSetting:
        """One that clips most steps."""
        assert self._reference is not None
        return ClipSetting(method="global_norm", threshold=self._reference.norms.median / 2)

    def _ran(self) -> _Run:
        assert self._first is not None
        return self._first

    def _clip(self) -> Iterator[Finding]:
        self._reference = measure_function(
            self._workload, (0,), num_steps=self._num_steps, num_batches=min(_NUM_BATCHES, self._num_steps)
        )
        self._first = run = self._run(self._setting)
        calls, wanted = len(run.norms), self._num_steps
        if calls == wanted:
            yield Finding(
                about="clip",
                standing="ok",
                text=f"trial.clip was called once per step; gradient norm {self._reference.norms.median:.3g} at first",
            )
        else:
            yield Finding(
                about="clip",
                standing="fix",
                text=f"{calls} calls of trial.clip with a finite gradient, where trial.num_steps is {wanted}",
                remedy="train trial.num_steps optimizer steps, and clip once in each, after accumulating gradients",
            )

    def _report(self) -> Iterator[Finding]:
        steps = [step for step, _ in self._ran().reports]
        shown = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        if not steps:
            yield Finding(
                about="report",
                standing="fix",
                text="nothing was reported",
                remedy="call trial.report(step, value) with the objective on held-out data, or return the last one",
            )
            return
        if bad := [step for step, value in self._ran().reports if not math.isfinite(value)]:
            yield Finding(
                about="report",
                standing="fix",
                text=f"the objective at step {bad[0]} is not finite: this counts as diverged",
                remedy="look at the loss and the learning rate, or run the check with other parameters",
            )
        if steps[-1] != self._num_steps:
            yield Finding(
                about="report",
                standing="fix",
                text=f"the last report is at step {steps[-1]}, where trial.num_steps is {self._num_steps}",
                remedy="report at trial.num_steps too: it is what settings are judged by",
            )
            return
        yield Finding(about="report", standing="ok", text=f"the objective was reported at step {shown}")
        if steps[0] != 0:
            yield Finding(
                about="report",
                standing="note",
                text="nothing is reported at step 0, before training",
                remedy="with it, an objective beyond divergence_factor times that value counts as diverged",
            )
        if len([step for step in steps if step > 0]) < 2:
            yield Finding(
                about="report",
                standing="note",
                text="nothing is reported on the way",
                remedy="report now and then: a setting that falls behind is then pruned, which saves most of its time",
            )

    def _learning_rate(self) -> Iterator[Finding]:
        if not self._ran().knows_rate_scale:
            yield Finding(
                about="learning rate",
                standing="note",
                text="trial.learning_rate_scale is not read, so a study can't tune the learning rate too",
                remedy="multiply the learning rate by it",
            )

    def _clipping(self) -> Iterator[Finding]:
        off = self._run(OFF_SETTING)
        if not self._ran().clip_fraction or self._num_steps < 2:
            return
        if off.norms == self._ran().norms:
            yield Finding(
                about="clipping",
                standing="fix",
                text=f"training under {self._setting} and without clipping is the same in every step",
                remedy="call trial.clip between backward() and optimizer.step(), on the parameters that are trained",
            )
        else:
            yield Finding(
                about="clipping", standing="ok", text=f"{self._setting} trains differently from no clipping"
            )

    def _repeatable(self) -> Iterator[Finding]:
        run, again = self._ran(), self._run(self._setting)
        # Not the first run's time, in which libraries are still loaded.
        self.steps_per_second = len(again.norms) / again.seconds
        if (run.norms, repr(run.reports)) == (again.norms, repr(again.reports)):
            yield Finding(
                about="repeatable", standing="ok", text="two runs under one seed are equal in every bit"
            )
            return
        pairs = enumerate(zip(run.norms, again.norms, strict=False))
        at = next(
            (f"from step {number + 1} on" for number, (one, other) in pairs if one != other),
            "in what they report",
        )
        yield Finding(
            about="repeatable",
            standing="fix",
            text=f"two runs under one seed differ {at}",
            remedy="Python's, NumPy's and PyTorch's global generators are seeded before each run: draw from them, or "
            "seed your own with trial.seed; keep nothing between calls",
        )

    def _seeds(self) -> Iterator[Finding]:
        other = self._run(self._setting, seed=1)
        if other.norms == self._ran().norms:
            yield Finding(
                about="seeds",
                standing="fix",
                text="seeds 0 and 1 give the same training",
                remedy="take the seed from trial.seed, or do not seed at all: a comparison needs runs that differ",
            )
        else:
            yield Finding(about="seeds", standing="ok", text="another seed gives another training")

    def _pruning(self) -> Iterator[Finding]:
        run = self._run(self._setting, stop=True)
        if run.num_refused:
            yield Finding(
                about="pruning",
                standing="fix",
                text=f"it went on for {run.num_refused} calls after it was told to stop",
                remedy="let TrialPruned pass: catch narrower exceptions around trial.clip and trial.report",
            )
        else:
            yield Finding(about="pruning", standing="ok", text="it stops when it is told to")

    def _lanes(self) -> Iterator[Finding]:
        yield Finding(
            about="lanes",
            standing="note",
            text="solo: a training function trains one lane at a time",
            remedy="a Workload class can train its lanes as one program",
        )
