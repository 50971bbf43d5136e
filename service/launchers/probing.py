"""Measure gradient norms through a training process, so that whoever asks loads no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import tuner.errors
from service.errors import ServiceError, TrainingError
from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Catalogue, Done
from service.settings import Settings
from tuner.errors import SpecError, UnknownWorkloadError
from tuner.evidence import Reference
from tuner.parameters import ParameterValue, WorkloadDescription
from tuner.training.cohort import ProbeMeasured

#: How long a training process may take to start and to name its workloads, in seconds.
_START_SECONDS = 120.0
#: How often the process is looked at while it measures, in seconds.
_WAIT_SECONDS = 1.0
#: Gradients of a worker's probe, which stays within the time of a stall: `tuner.training.probe.NUM_BATCHES`.
_USUAL_BATCHES = 100
Told = TypeVar("Told")


class ProbeFailedError(ServiceError):
    """The science package refused to probe: its sentence and its code."""

    code = "probe_failed"

    def __init__(self, detail: str, code: str) -> None:
        self.code = code
        super().__init__(detail)


class Prober:
    """A training process that measures; it is started by the first question and ends with the ``with`` block.

    Args:
        settings: which workloads are registered, and how processes run.
    """

    def __init__(self, settings: Settings) -> None:
        self._launcher = LocalLauncher.of(settings)
        self._stall_seconds = settings.stall_seconds
        self._process: TrainingProcess | None = None
        self._catalogue: Catalogue | None = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def device(self) -> str:
        """What it measures on, in words; not known before the first question."""
        ready = None if self._process is None else self._process.ready
        return "unknown device" if ready is None else ready.device

    def describe(self, workload: str) -> WorkloadDescription:
        """A workload of this installation.

        Args:
            workload: its name.

        Returns:
            Its description with its parameters.

        Raises:
            ModuleNotFoundError: without torch.
            SpecError: if the workload can't be used.
            UnknownWorkloadError: if this installation has no such workload.
            TrainingError: if the process breaks.
        """
        catalogue = self._described()
        for refused in catalogue.refused:
            if refused.name == workload:
                raise SpecError("workload", refused.reason)
        known = {each.name: each for each in catalogue.workloads}
        if workload not in known:
            raise UnknownWorkloadError(workload, known)
        return known[workload]

    def measure(
        self,
        workload: str,
        parameters: Mapping[str, ParameterValue],
        seeds: Sequence[int],
        *,
        num_batches: int | None = None,
        num_steps: int | None = None,
    ) -> Reference:
        """Probe a workload.

        Args:
            workload: its name.
            parameters: all of them, as `tuner.parameters.resolve_parameters` gives them.
            seeds: training seeds, at least one.
            num_batches: gradients in total; None for a probe's usual number.
            num_steps: optimizer steps of a full run, as a training function is told; None for a probe's usual number.

        Returns:
            What was measured.

        Raises:
            ModuleNotFoundError: without torch.
            ProbeFailedError: if there is no usable gradient, or the model can't be trained.
            TrainingError: if the workload's code raises or hangs, or the process breaks.
        """
        process = self._started()
        request: dict[str, Any] = {
            "kind": "probe",
            "workload": workload,
            "parameters": dict(parameters),
            "seeds": list(seeds),
        }
        given = {"num_batches": num_batches, "num_steps": num_steps}
        process.send(request | {name: value for name, value in given.items() if value is not None})
        # The gradients of a workload's class are measured in silence.
        patience = self._stall_seconds * max(1, (num_batches or 0) / _USUAL_BATCHES)
        return receive(process, ProbeMeasured, patience).reference

    def _described(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = self._launcher.describe(self._started(), _START_SECONDS)
        return self._catalogue

    def _started(self) -> TrainingProcess:
        if find_spec("torch") is None:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        if self._process is None:
            self._process = self._launcher.launch()
        return self._process


def receive(process: TrainingProcess, kind: type[Told], stall_seconds: float) -> Told:
    """The answer to a request.

    Args:
        process: that was asked.
        kind: of the answer.
        stall_seconds: silence after which it counts as hung.

    Returns:
        What it told.

    Raises:
        ProbeFailedError: if it could not.
        TrainingError: if the process breaks, or says nothing for too long.
    """
    told: Told | None = None
    heard = time.monotonic()
    while True:
        message = process.receive(min(_WAIT_SECONDS, stall_seconds))
        if message is not None:
            heard = time.monotonic()
        elif time.monotonic() - heard >= stall_seconds:
            raise TrainingError(
                f"the training process said nothing for {stall_seconds:g} s: the workload's code hangs, or "
                "CLIPTUNE_STALL_SECONDS is too short for it",
                cause="stall",
            )
        if isinstance(message, kind):
            told = message
        elif isinstance(message, Broken):
            refuse(message)
        elif isinstance(message, Done):
            if told is None:
                raise TrainingError("the training process gave no answer", cause="bad_output")
            return told


def refuse(broken: Broken) -> NoReturn:
    """Pass on what went wrong: an error of the science package by its own sentence, another with where it came from.

    Args:
        broken: what the process told.

    Raises:
        ProbeFailedError: for an error of the science package.
        TrainingError: for any other.
    """
    name, _, sentence = broken.detail.partition(": ")
    kind = getattr(tuner.errors, name, None)
    if isinstance(kind, type) and issubclass(kind, tuner.errors.TunerError):
        raise ProbeFailedError(sentence, kind.code)
    raise TrainingError(f"{broken.detail}\n{broken.traceback}".rstrip(), cause=broken.cause)
