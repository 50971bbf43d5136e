"""What of a cohort's training a checkpoint holds beside the engine, and whether a checkpoint fits a cohort.

A cohort that is trained again after a crash has fewer trials: some have their results, some have failed for good.
A checkpoint fits if it is of the same training otherwise, to the last parameter, PyTorch version and kind of device.
Trials that ended after it was written are trained again untold, because what trains beside a lane and what it is
compared with must be the same as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tuner.errors import CheckpointError
from tuner.spec import canonical_digest
from tuner.training.checkpoint import Checkpoints
from tuner.training.cohort import CheckpointFailed, CheckpointSaved, Cohort
from tuner.training.engine import Engine, EngineState, LaneId
from tuner.training.sharing import leader
from tuner.workloads.base import AnyWorkload


@dataclass
class CohortState:
    """Where a cohort is between two rungs, as plain values.

    Attributes:
        live_trials: trials that have not ended, in the cohort's order.
        bounds: per seed, the validation loss beyond which a lane counts as diverged; inf is none.
        initial: per seed, the objective before the first step where it was finite; empty in checkpoints of earlier
            versions.
        next_rung: number of the rung that comes next, from 0.
        divergence: divergence step by lane.
        values: newest objective by lane.
        lane_steps: optimizer steps taken, over all lanes.
        ended_steps: those of lanes that ended or diverged.
        is_undecided: whether which trials end at the rung before ``next_rung`` is still to be told: a part of a cohort
            waits there.
    """

    live_trials: list[str]
    bounds: dict[int, float] = field(default_factory=dict)
    initial: dict[int, float] = field(default_factory=dict)
    next_rung: int = 0
    divergence: dict[LaneId, int] = field(default_factory=dict)
    values: dict[LaneId, float] = field(default_factory=dict)
    lane_steps: int = 0
    ended_steps: int = 0
    is_undecided: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite bound is written as None."""
        return {
            "live_trials": self.live_trials,
            "bounds": [
                [seed, bound if math.isfinite(bound) else None] for seed, bound in self.bounds.items()
            ],
            "initial": [[seed, value] for seed, value in self.initial.items()],
            "next_rung": self.next_rung,
            "divergence": [[*lane, step] for lane, step in self.divergence.items()],
            "values": [[*lane, value] for lane, value in self.values.items()],
            "lane_steps": self.lane_steps,
            "ended_steps": self.ended_steps,
            "is_undecided": self.is_undecided,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CohortState:
        """Read what `to_json` wrote."""
        return cls(
            live_trials=list(document["live_trials"]),
            bounds={seed: math.inf if bound is None else bound for seed, bound in document["bounds"]},
            initial=dict(document.get("initial", [])),
            next_rung=document["next_rung"],
            divergence={LaneId(trial, seed): step for trial, seed, step in document["divergence"]},
            values={LaneId(trial, seed): value for trial, seed, value in document["values"]},
            lane_steps=document["lane_steps"],
            ended_steps=document["ended_steps"],
            is_undecided=document.get("is_undecided", False),
        )


class Resumption(NamedTuple):
    """A cohort at a checkpoint.

    Attributes:
        cohort: as it was when its training began: all its trials, and what they are compared with.
        engine: at the checkpoint; trials that failed since are retired.
        state: where the cohort is.
    """

    cohort: Cohort
    engine: Engine
    state: CohortState


class CohortCheckpoints:
    """Writes and reads the checkpoints of one cohort's training.

    Args:
        checkpoints: where they are.
        workload: what is trained.
        device: where.
    """

    def __init__(self, checkpoints: Checkpoints, workload: AnyWorkload, device: torch.device) -> None:
        self._checkpoints = checkpoints
        self._workload = workload
        self._device = device

    def save(
        self, cohort: Cohort, engine: Engine, state: CohortState
    ) -> CheckpointSaved | CheckpointFailed | None:
        """Write down where a cohort is, before its first step or at a rung.

        Args:
            cohort: as it was when its training began.
            engine: its engine.
            state: where it is itself.

        Returns:
            What happened; None if the engine can't write down its state, and for the beginning, which is only the
            cohort.
        """
        stored = engine.state()
        if stored is None:
            return None
        index = state.next_rung - 1
        step = cohort.rung_steps[index] if state.next_rung else 0
        if step == 0:
            stored = EngineState({}, {})
        values = {
            "trained": self._trained_digest(cohort),
            "torch": torch.__version__,
            "device": self._device.type,
            "cohort": cohort.to_json(),
            "engine": stored.values,
            "state": state.to_json(),
        }
        try:
            saved = self._checkpoints.save(stored.tensors, values, step=step)
        except OSError as error:
            folder = self._checkpoints.folder
            return CheckpointFailed(
                error=f"no checkpoint could be written to {folder} at step {step} ({error}); training goes on, and "
                "would start again from an earlier step: make room there, or make it writable"
            )
        if step == 0:
            return None
        return CheckpointSaved(index=index, step=step, num_bytes=saved.num_bytes, seconds=saved.seconds)

    def find(
        self, cohort: Cohort, restore: Callable[[Cohort, EngineState | None], Engine]
    ) -> tuple[Resumption | None, list[CheckpointFailed]]:
        """The newest checkpoint from which a cohort can go on.

        Args:
            cohort: what is left to train.
            restore: makes an engine of a whole cohort that goes on from a state; None is the first step.

        Returns:
            It, or None to start from the first step; and what is wrong with newer ones.
        """
        self._checkpoints.forget_drafts()
        failed: list[CheckpointFailed] = []
        try:
            found = self._checkpoints.newest_first()
        except OSError as error:
            told = f"the checkpoints in {self._checkpoints.folder} can't be listed ({error})"
            return None, [CheckpointFailed(error=f"{told}; training starts at the first step")]
        for path in found:
            try:
                return self._read(path, cohort, restore), failed
            except CheckpointError as error:
                failed.append(CheckpointFailed(error=str(error)))
            except Exception as error:
                # Whatever is wrong with a checkpoint, training from an earlier step is still right.
                problem = CheckpointError(path, f"can't be restored ({type(error).__name__}: {error})")
                failed.append(CheckpointFailed(error=str(problem)))
        return None, failed

    def _read(
        self, path: Path | str, cohort: Cohort, restore: Callable[[Cohort, EngineState | None], Engine]
    ) -> Resumption:
        """Go on from one checkpoint.

        Raises:
            CheckpointError: if it does not verify, or is of another training.
        """
        tensors, values = self._checkpoints.load(path)
        if values["trained"] != self._trained_digest(cohort):
            made, here = (
                f"{values['torch']} on {values['device']}",
                f"{torch.__version__} on {self._device.type}",
            )
            raise CheckpointError(path, f"is of another training (by PyTorch {made}; here is {here})")
        whole, state = Cohort.from_json(values["cohort"]), CohortState.from_json(values["state"])
        gone = _gone(path, cohort, whole, state)
        engine = restore(whole, EngineState(tensors, values["engine"]) if state.next_rung else None)
        engine.retire([LaneId(trial, seed) for trial in gone for seed in whole.seeds])
        state.live_trials = [trial for trial in state.live_trials if trial not in gone]
        return Resumption(whole, engine, state)

    def _trained_digest(self, cohort: Cohort) -> str:
        """Identifies what is trained and with what, whichever trials are left; hexadecimal."""
        document = cohort.to_json()
        # What is left, and what it is compared with, changes with every trial that ends.
        for name in ("trials", "history", "ended"):
            del document[name]
        return canonical_digest(
            document
            | {
                "precision": self._workload.precision,
                "accumulation_steps": self._workload.accumulation_steps,
                "torch": torch.__version__,
                "device": self._device.type,
            }
        )


def _gone(path: Path | str, cohort: Cohort, whole: Cohort, state: CohortState) -> tuple[str, ...]:
    """The live trials of a checkpoint that can't be trained any more, because they failed.

    Raises:
        CheckpointError: if it lacks a trial that is wanted, or can't go on without one that failed.
    """
    settings = {trial.id: trial.setting for trial in whole.trials}
    for trial in cohort.trials:
        if trial.id not in state.live_trials or settings[trial.id] != trial.setting:
            raise CheckpointError(path, f"has no live trial {trial.id} with {trial.setting}")
    known = {trial.id for trial in cohort.trials} | set(cohort.ended)
    gone = tuple(trial for trial in state.live_trials if trial not in known)
    if leader(whole) in gone:
        # Others may be trained as copies of it, see `tuner.training.sharing`.
        raise CheckpointError(path, "needs the trial without clipping, which failed")
    return gone
