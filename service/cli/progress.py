"""A running study on a terminal, or in a log: the events folded into a view, and the view as lines.

All of it is pure: a view and an event give the next view, two views give what is new. `service.cli.following` shows it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from service.cli.norm_strip import probe_summary
from service.launchers.protocol import read_reference
from service.schemas import EventOut, StudyOut
from service.states import JobState
from tuner.evidence import Stage
from tuner.spec import ClipSetting

_BAR = 24


@dataclass(frozen=True)
class StudyView:
    """What is known of a running study.

    Attributes:
        study: as it was when the view began.
        status: the last thing that happened, in words.
        probe: the reference norms in words, empty before the probe.
        cohort: number of the cohort that trains, from 0.
        cohort_ids: ids of its trials.
        cohort_share: share of its steps done, in [0, 1].
        step: the newest step that was told of the cohort.
        rung: the newest rung of the cohort with their number, empty before the first.
        engine: how the cohort's lanes are trained, in words; empty if that was not told.
        rungs: one line per rung reached, and per resumption.
        ended: trials of the search that have a result, by id.
        fresh: the fresh seeds of the confirmation in words; empty during the search.
        best: best mean objective of the search so far with its setting.
        off: the search's mean objective without clipping.
        has_ended: whether the stream is over.
    """

    study: StudyOut
    status: str = "queued"
    probe: str = ""
    cohort: int = 0
    cohort_ids: frozenset[str] = frozenset()
    cohort_share: float = 0.0
    step: int = 0
    rung: str = ""
    engine: str = ""
    rungs: tuple[str, ...] = ()
    ended: frozenset[str] = frozenset()
    fresh: str = ""
    best: tuple[float, str] | None = None
    off: str = ""
    has_ended: bool = False

    def fold(self, event: EventOut | StudyOut | None) -> StudyView:
        """The view after an event, or after a look at the study.

        A sign of life changes nothing, nor does what a newer service may send: another kind, or other fields in it.
        """
        if event is None:
            return self
        if isinstance(event, StudyOut):
            return dataclasses.replace(self, study=event)
        change = getattr(self, f"_on_{event.kind}", None)
        if change is None:
            return self
        try:
            return dataclasses.replace(self, **change(event.payload))
        except (LookupError, TypeError, ValueError, AttributeError):
            return self

    def _on_acquired(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {
            "status": "a worker has it"
            + (f" (attempt {payload['attempt']})" if payload["attempt"] > 1 else "")
        }

    def _on_training_started(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"status": f"training on {payload['device']}"}

    def _on_probe(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"probe": probe_summary(read_reference(payload["reference"]))}

    def _on_cohort(self, payload: dict[str, Any]) -> dict[str, Any]:
        ids = frozenset(each["id"] for each in payload["trials"])
        is_fresh = payload.get("stage") == Stage.CONFIRM
        fresh = f"{len(payload['seeds'])} fresh seeds" if is_fresh else ""
        begun = {"cohort_share": 0.0, "step": 0, "rung": ""}
        return {"cohort": payload["cohort"], "cohort_ids": ids, "fresh": fresh, **begun}

    def _on_engine(self, payload: dict[str, Any]) -> dict[str, Any]:
        if payload["path"] == "external":
            return {
                "engine": "trained elsewhere: `cliptune run --study ID -- COMMAND` trains a lane at a time"
            }
        if payload["path"] == "solo":
            return {"engine": f"one lane at a time: {_first_line(payload['reason'])}"}
        both = (payload["lanes_per_second"], payload["solo_per_second"])
        faster = f", {both[0] / both[1]:.1f} times as fast as one at a time" if all(both) else ""
        return {"engine": f"{payload['num_lanes']} lanes together{faster}"}

    def _on_resumed(self, payload: dict[str, Any]) -> dict[str, Any]:
        text = f"resumed  from step {payload['step']} (checkpoint of rung {payload['index'] + 1})"
        return {"rungs": (*self.rungs, text)}

    def _on_checkpoint_failed(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"status": f"a checkpoint failed: {_first_line(payload['error'])}"}

    def _on_progress(self, payload: dict[str, Any]) -> dict[str, Any]:
        share = payload["lane_steps"] / max(1, payload["total_lane_steps"])
        return {"cohort_share": share, "step": payload["step"]}

    def _on_rung(self, payload: dict[str, Any]) -> dict[str, Any]:
        reached = {"rung": f"rung {payload['index'] + 1}/{payload['num_rungs']}", "step": payload["step"]}
        if self.fresh:
            return reached
        known = [each for each in payload["values"] if each["mean"] is not None]
        best = min((each["mean"] for each in known), default=None)
        text = (
            f"cohort {payload['cohort'] + 1} rung {payload['index'] + 1}/{payload['num_rungs']} "
            f"at step {payload['step']}: {len(payload['values'])} settings"
            + (f", best {best:.4f}" if best is not None else "")
            + (f", {len(payload['pruned'])} stopped" if payload["pruned"] else "")
        )
        return {"rungs": (*self.rungs, f"         {text}"), **reached}

    def _on_trial(self, payload: dict[str, Any]) -> dict[str, Any]:
        mean, name = payload["mean"], _setting(payload["setting"])
        if self.fresh:
            return {"rungs": (*self.rungs, f"confirm  {name} {_outcome(payload)}   {self.fresh}")}
        changes: dict[str, Any] = {"ended": self.ended | {payload["trial_id"]}}
        if payload["setting"]["method"] == "none":
            changes["off"] = _outcome(payload)
        elif payload["state"] == "complete" and mean is not None and not payload["num_diverged"]:
            changes["best"] = min(filter(None, (self.best, (mean, name))))
        return changes

    def _on_trial_failed(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"ended": self.ended | {payload["trial_id"]}, "status": f"a trial failed: {payload['error']}"}

    def _on_reaped(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"status": f"its worker was lost ({payload['lost_count']} in a row); another one takes over"}

    def _on_released(self, payload: dict[str, Any]) -> dict[str, Any]:
        del payload
        return {"status": "its worker stopped; another one takes over"}

    def _on_error(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"status": f"error, tried again: {_last_line(payload['error'])}"}

    def _on_cancel_requested(self, payload: dict[str, Any]) -> dict[str, Any]:
        del payload
        return {"status": "cancel requested"}

    def _on_succeeded(self, payload: dict[str, Any]) -> dict[str, Any]:
        del payload
        return {"status": "done", "has_ended": True}

    def _on_failed(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"status": f"failed: {_last_line(payload.get('error', ''))}"}

    def _on_cancelled(self, payload: dict[str, Any]) -> dict[str, Any]:
        del payload
        return {"status": "cancelled"}

    @property
    def share(self) -> float:
        """Share of the search's settings, then of the confirmation's steps, that is done, in [0, 1]."""
        if self.has_ended:
            return 1.0
        if self.fresh:
            return min(self.cohort_share, 0.99)
        total = int(self.study.spec["num_trials"])
        running = self.cohort_share * len(self.cohort_ids - self.ended)
        # Steps may all be done before the results are told: only results make it complete.
        return min((len(self.ended) + running) / total, 1.0 if len(self.ended) >= total else 0.99)

    def header(self) -> str:
        """The study in a line."""
        spec = self.study.spec
        return (
            f"study {self.study.id[:8]}   {spec['workload']}   {spec['num_trials']} settings x "
            f"{spec['num_seeds']} seeds, {spec['num_steps']} steps"
        )

    def still(self, seconds: float) -> str:
        """The view in one line, for when nothing has happened for a while.

        Args:
            seconds: since the waiting began.

        Returns:
            The state, how far it is, and the time.
        """
        spec, parts = self.study.spec, []
        if self.rung:
            parts.append(self.rung)
        if self.step:
            parts.append(f"{self.step} of {spec['num_steps']} steps")
        # A look at the study knows the settings where no events come through.
        done = max(len(self.ended), self.study.num_trials_ended)
        parts.append(
            f"confirming on {self.fresh}" if self.fresh else f"{done} of {spec['num_trials']} settings done"
        )
        is_queued = self.status == "queued" and self.study.state is JobState.QUEUED
        state = "queued" if is_queued else "running"
        return f"still {state}, {', '.join(parts)}, {_spent(seconds)}"

    def lines(self) -> list[str]:
        """The view as it stands."""
        filled = round(self.share * _BAR)
        bar = f"[{'#' * filled}{'-' * (_BAR - filled)}] {self.share:4.0%}"
        lines = [self.header()]
        if self.probe:
            lines.append(f"probe    {self.probe}")
        if self.engine:
            lines.append(f"engine   {self.engine}")
        lines += self.rungs[-4:]
        so_far = f"   best so far {self.best[1]} {self.best[0]:.4f}" if self.best else ""
        against = f"   off {self.off}" if self.off else ""
        done = f"{len(self.ended)} of {self.study.spec['num_trials']} settings done"
        if self.fresh and not self.has_ended:
            done = f"confirming on {self.fresh}"
        lines.append(f"{bar}   {done}{so_far}{against}")
        lines.append(f"         {self.status}")
        return lines


def news(before: StudyView, after: StudyView) -> list[str]:
    """What a reader of a log has not seen yet.

    Args:
        before: what was shown.
        after: what is known now.

    Returns:
        A line for each thing that happened.
    """
    lines = [after.probe and f"probe    {after.probe}"] if after.probe != before.probe else []
    if after.engine != before.engine:
        lines.append(f"engine   {after.engine}")
    lines += after.rungs[len(before.rungs) :]
    if after.cohort_ids != before.cohort_ids or after.share == 1.0 != before.share:
        lines.append(after.lines()[-2])
    if after.status != before.status:
        lines.append(f"         {after.status}")
    return lines


def _setting(document: dict[str, Any]) -> str:
    return str(ClipSetting(**document))


def _outcome(payload: dict[str, Any]) -> str:
    """A trial's mean, and how many of its seeds diverged."""
    mean, num_diverged = payload["mean"], payload["num_diverged"]
    diverged = f" ({num_diverged} seeds diverged)" if num_diverged else ""
    return (f"{mean:.4f}" if mean is not None else "all seeds") + diverged


def _spent(seconds: float) -> str:
    """A time in words.

    Example:
        >>> _spent(42), _spent(245), _spent(7380)
        ('42 s', '4 min', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]


def _last_line(error: str) -> str:
    """Where a traceback names the exception."""
    return (error.strip().splitlines() or ["no reason given"])[-1]
