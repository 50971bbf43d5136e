"""What every launcher does, wherever its processes run: it starts them, and learns which workloads they can train."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Catalogue, Done, Pending
from tuner.workloads.registrations import RefusedWorkload, Registration, Registrations


class AbstractLauncher(ABC):
    """Starts training processes.

    Attributes:
        registrations: the workloads that they may import.
    """

    registrations: Registrations

    @abstractmethod
    def launch(self) -> TrainingProcess:
        """A new training process; it says `Ready` once it can take a request."""

    @abstractmethod
    def _launch_for(self, registrations: Registrations) -> TrainingProcess:
        """A new training process with other workloads."""

    def describe(self, process: TrainingProcess, timeout: float) -> Catalogue:
        """Ask a training process for its workloads.

        Args:
            process: just launched.
            timeout: how long to wait, in seconds; the import of torch is in it, and waiting for a node is not.

        Returns:
            The catalogue; the process is free for a study afterwards.

        Raises:
            TrainingError: if the process ends first or does not answer in time.
        """
        process.send({"kind": "describe"})
        catalogue: Catalogue | None = None
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            message = process.receive(left)
            if isinstance(message, Catalogue):
                catalogue = message
            elif isinstance(message, Pending):
                # A node may have to set up its runtime environment first.
                deadline = time.monotonic() + timeout
            elif isinstance(message, Broken):
                raise TrainingError(f"{message.detail}\n{message.traceback}", cause=message.cause)
            elif isinstance(message, Done) and catalogue is not None:
                return catalogue
        raise TrainingError(
            f"the training process did not name its workloads within {timeout:g} s", cause="stall"
        )

    def describe_apart(self, timeout: float) -> Catalogue:
        """Ask a process of its own for each workload: one whose import ends or holds up the process is refused alone.

        Args:
            timeout: how long to wait for each, in seconds.

        Returns:
            The catalogue.

        Raises:
            TrainingError: if there is no workload, or not one of the processes answered: then it is not theirs.
        """
        parts, broken = [], TrainingError("there is no workload to describe", cause="bug")
        for each in self.registrations:
            try:
                parts.append(self._describe_alone(each, timeout))
            except TrainingError as error:
                broken = error
                reason = f"{each.name!r} can't be used: {each}: {str(error).splitlines()[0]}"
                refused = RefusedWorkload(name=each.name, target=each.target, reason=reason)
                parts.append(Catalogue(workloads=(), refused=(refused,)))
        if not any(part.workloads for part in parts):
            raise broken
        return Catalogue(
            workloads=tuple(one for part in parts for one in part.workloads),
            refused=tuple(one for part in parts for one in part.refused),
        )

    def _describe_alone(self, registration: Registration, timeout: float) -> Catalogue:
        process = self._launch_for(Registrations([registration]))
        try:
            return self.describe(process, timeout)
        finally:
            process.stop()
