"""A study's trainings on a monitor: one run per lane, written from the events that tell of it.

A run is opened when its trial ends, written in the order of the steps, and closed: however many lanes train at once,
one run is open at a time, and a monitor that wants rising steps gets them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tuner.evidence import LaneResult, PhaseSketch, Trial
from tuner.monitors import Monitor
from tuner.training.cohort import Event, RungReached, TrialEnded

#: Quantiles of the norms before clipping that are shown per phase.
_QUANTILES = ("q01", "q10", "median", "q90", "q99", "max")


@dataclass(frozen=True)
class _Known:
    """What the events do not say of a trial."""

    number: int
    setting: str


class TrialMonitors:
    """Writes every trial that ends to a monitor; an ``on_event`` of `tuner.tune`, and the worker's.

    A run is called ``<trial number> <setting> seed <seed>``, for example ``4 global_norm:0.35 seed 0``. It has, over
    the steps: the objective under its own name at step 0 and at the rungs (none where the lane had diverged); the
    ``train_loss`` curve; and at the last step of each phase the phase's ``clip_fraction`` and mean ``scale``, and the
    quantiles of its norms, ``pre_clip_norm_q01`` to ``pre_clip_norm_max``. Without phases, both for the whole lane.

    Args:
        open_run: gives a monitor for a run's name.
        objective: name of what is minimized.

    Example:
        >>> from tuner.monitors import TensorBoardMonitor
        >>> monitors = TrialMonitors(lambda run: TensorBoardMonitor(f"runs/{run}"), objective="val_loss")
    """

    def __init__(self, open_run: Callable[[str], Monitor], *, objective: str = "objective") -> None:
        self._open_run = open_run
        self._objective = objective
        self._known: dict[str, _Known] = {}
        # By trial, then by (seed, step): a rung that is told again after a restart is the same rung.
        self._rungs: defaultdict[str, dict[tuple[int, int], float | None]] = defaultdict(dict)

    def expect(self, trials: Iterable[Trial]) -> None:
        """Learn what events leave out: numbers and settings, and the rungs of a study that somebody began.

        Args:
            trials: of the study, as many as are known; those that have ended are left out.
        """
        for trial in trials:
            if not trial.state.is_open:
                continue
            self._known[trial.id] = _Known(trial.number, str(trial.setting))
            for step, by_seed in trial.rungs.items():
                self._rungs[trial.id].update({(seed, step): value for seed, value in by_seed.items()})

    def __call__(self, event: Event) -> None:
        """Take in an event; a trial that ends is written.

        Args:
            event: any event of a training.
        """
        if isinstance(event, RungReached):
            for lane in event.values:
                self._rungs[lane.trial_id][lane.seed, event.step] = lane.value
        elif isinstance(event, TrialEnded):
            self._write(event)

    def _write(self, ended: TrialEnded) -> None:
        rungs = self._rungs.pop(ended.trial_id, {})
        known = self._known.pop(ended.trial_id, None)
        named = ended.trial_id if known is None else f"{known.number} {known.setting}"
        for lane in ended.lanes:
            values = {step: value for (seed, step), value in rungs.items() if seed == lane.seed}
            run = self._open_run(f"{named} seed {lane.seed}")
            try:
                for step, figures in lane_figures(lane, values, objective=self._objective):
                    run.log(step, figures)
            finally:
                run.close()


def lane_figures(
    lane: LaneResult, rungs: Mapping[int, float | None], *, objective: str
) -> list[tuple[int, dict[str, float]]]:
    """What is shown of one lane.

    Args:
        lane: its result.
        rungs: its objective by step; None where it had diverged.
        objective: the objective's name.

    Returns:
        Figures by step, ascending; none is missing or None.
    """
    figures: defaultdict[int, dict[str, float]] = defaultdict(dict)
    if lane.initial is not None:
        figures[0][objective] = lane.initial
    for step, value in rungs.items():
        if value is not None:
            figures[step][objective] = value
    if lane.curve is not None:
        for position, loss in lane.curve.points(lane.num_steps):
            figures[round(position)]["train_loss"] = loss
    end = 0
    for phase in lane.phases:
        end += phase.num_steps
        figures[end].update(_phase_figures(phase))
    if not lane.phases:
        figures[lane.num_steps].update(_known(clip_fraction=lane.clip_fraction, scale=lane.mean_scale))
    return [(step, figures[step]) for step in sorted(figures) if figures[step]]


def _phase_figures(phase: PhaseSketch) -> dict[str, float]:
    told = _known(clip_fraction=phase.clip_fraction, scale=phase.mean_scale)
    if phase.norms is None:
        return told
    quantiles = {f"pre_clip_norm_{name}": getattr(phase.norms, name) for name in _QUANTILES}
    return told | _known(**quantiles)


def _known(**figures: float | None) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}
