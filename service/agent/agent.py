"""Ask a study for lanes and train one after another, until it has ended or somebody says stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.agent.lane import Plan, train
from service.agent.metrics import Measurement
from service.agent.outcome import Outcome
from service.errors import ServiceError, UnavailableError
from tuner.errors import TrialPruned

if TYPE_CHECKING:
    from service.client import Client, LeasedTrial

#: How long to wait for a lane before people are told what is waited for, and how long from then on, in seconds.
_FIRST_WAIT_SECONDS, _WAIT_SECONDS = 5.0, 60.0


@dataclass
class Tally:
    """What became of the lanes of one agent.

    Attributes:
        num_complete: trained to their end.
        num_diverged: whose objective was not finite.
        num_stopped: that the service wanted no more of: pruned, most of them.
        num_failed: given back with an error.
    """

    num_complete: int = 0
    num_diverged: int = 0
    num_stopped: int = 0
    num_failed: int = 0

    @property
    def num_lanes(self) -> int:
        """All of them."""
        return self.num_complete + self.num_diverged + self.num_stopped + self.num_failed

    @property
    def has_only_failed(self) -> bool:
        """Whether there were lanes, and nothing but failures."""
        return 0 < self.num_failed == self.num_lanes

    def count(self, outcome: Outcome) -> None:
        """Count one lane."""
        match outcome.kind:
            case "complete":
                self.num_complete += 1
            case "diverged":
                self.num_diverged += 1
            case "stopped":
                self.num_stopped += 1
            case "failed":
                self.num_failed += 1

    def __str__(self) -> str:
        counts = f"{self.num_complete} trained, {self.num_stopped} stopped early, {self.num_failed} failed"
        diverged = f", {self.num_diverged} diverged" if self.num_diverged else ""
        return f"{self.num_lanes} lane{'' if self.num_lanes == 1 else 's'}: {counts}{diverged}"


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Leases lanes of one study.

    Attributes:
        client: of the service.
        study_id: of the study.
        client_id: name of this agent, under which it holds at most one lane.
        waits: whether to wait while no lane is ready.
        say: takes a line for people.
    """

    client: Client
    study_id: str
    client_id: str
    waits: bool
    say: Callable[[str], None]

    def ask(self) -> LeasedTrial | None:
        """The next lane.

        Returns:
            The lane; None if the study has ended, or if none is ready and nobody waits.

        Raises:
            UnavailableError: if the service is away, and stays away for two minutes if it was there before.
        """
        patience = _FIRST_WAIT_SECONDS if self.waits else 0.0
        has_said = False
        while True:
            try:
                return self.client.ask(self.study_id, client_id=self.client_id, wait=patience)
            except UnavailableError as error:
                if error.code != "no_lane_ready":
                    raise
                if not self.waits:
                    self.say(str(error))
                    return None
                if not has_said:
                    self.say("no lane is ready: waiting for the next ones")
            has_said, patience = True, _WAIT_SECONDS


def run_lanes(asker: Asker, plan: Plan, tally: Tally, *, max_lanes: int | None) -> None:
    """Train lanes until there are none, or enough.

    A lane that is interrupted (KeyboardInterrupt, SystemExit) is given back before the exception goes on.

    Args:
        asker: leases them.
        plan: how to train them.
        tally: counts what became of each.
        max_lanes: how many at most; None for all.
    """
    while max_lanes is None or tally.num_lanes < max_lanes:
        trial = asker.ask()
        if trial is None:
            return
        tally.count(_train_one(trial, plan, asker.say))


def lane_name(trial: LeasedTrial) -> str:
    """A lane for people: trial and seed."""
    number = "probe" if trial.stage == "probe" else f"trial {trial.number}"
    return f"{number}   seed {trial.seed}"


def _train_one(trial: LeasedTrial, plan: Plan, say: Callable[[str], None]) -> Outcome:
    name, began = lane_name(trial), time.monotonic()
    key = plan.objective_key or trial.objective
    repeat = "   on a fresh seed" if trial.stage == "confirm" else ""
    say(f"{name}   {trial.setting}{repeat}")

    def on_progress(newest: Measurement) -> None:
        seconds = time.monotonic() - began
        say(f"{name}   step {newest.step} of {trial.num_steps}   {key} {newest.value:.6g}   {seconds:.0f} s")

    try:
        with trial, _given_back_when_interrupted(trial, say):
            outcome = train(trial, plan, on_progress, lambda note: say(f"{name}   {note}"))
            outcome = _settle(trial, outcome)
    except ServiceError as error:
        # Leaving the block gave the lane back, or its lease expires: it is trained again either way.
        outcome = Outcome(kind="failed", cause="device_lost", detail=f"{error} [{error.code}]")
    # What was passed on need not be said again.
    detail = outcome.headline if plan.outlets[1] is not None else outcome.detail
    say(f"{name}   {_end(outcome, key, detail)}   {time.monotonic() - began:.1f} s")
    return outcome


def _settle(trial: LeasedTrial, outcome: Outcome) -> Outcome:
    """Tell the service how a lane ended; the outcome, changed if it wants the lane no more."""
    try:
        if outcome.kind == "failed":
            trial.fail(outcome.cause or "bug", outcome.detail)
        else:
            trial.complete(outcome.value)
    except TrialPruned as lost:
        return outcome if outcome.kind != "complete" else Outcome(kind="stopped", detail=lost.reason)
    return outcome


@contextlib.contextmanager
def _given_back_when_interrupted(trial: LeasedTrial, say: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        try:
            trial.fail("preempted", "cliptune run was interrupted")
        except ServiceError as error:
            say(f"{lane_name(trial)}   could not be given back [{error.code}]: its lease runs out by itself")
        else:
            say(f"{lane_name(trial)}   interrupted, and given back")
        raise


def _end(outcome: Outcome, key: str, detail: str) -> str:
    match outcome.kind:
        case "complete":
            return f"{key} {outcome.value:.6g}"
        case "diverged":
            return f"diverged: {key} is not finite"
        case "stopped":
            return detail
        case "failed":
            return f"failed: {detail} [{outcome.cause}]"
