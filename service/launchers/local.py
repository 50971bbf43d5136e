"""Start training processes on this machine, and learn from one which workloads it can train."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Catalogue, Done
from service.settings import Settings
from tuner.workloads.registrations import BUILT_IN, RefusedWorkload, Registration, Registrations

#: The program that trains.
TRAINER = (sys.executable, "-m", "service.launchers.trainer")


class LocalLauncher:
    """Starts training processes on this machine.

    Args:
        threads: CPU threads for torch, 0 = torch's choice.
        kill_grace_seconds: time between SIGTERM and SIGKILL.
        command: the training program.
        registrations: the workloads that it may import.
        import_from: see `training_environment`.
    """

    def __init__(
        self,
        *,
        threads: int,
        kill_grace_seconds: float,
        command: Sequence[str] = TRAINER,
        registrations: Registrations = BUILT_IN,
        import_from: Sequence[str] = (),
    ) -> None:
        self.registrations = registrations
        self._program = tuple(command)
        self._command = (*command, "--workloads", json.dumps(registrations.to_json(), separators=(",", ":")))
        self._threads = threads
        self._grace = kill_grace_seconds
        self._import_from = tuple(import_from)

    @classmethod
    def of(cls, settings: Settings) -> LocalLauncher:
        """The launcher of an installation.

        Args:
            settings: threads, times, and which workloads are registered.

        Returns:
            The launcher.

        Raises:
            SpecError: if two registrations have one name.
        """
        return cls(
            threads=settings.training_threads,
            kill_grace_seconds=settings.kill_grace_seconds,
            registrations=settings.registrations,
        )

    def launch(self) -> TrainingProcess:
        """A new training process; it says `Ready` once torch is imported."""
        return TrainingProcess(
            self._command,
            threads=self._threads,
            kill_grace_seconds=self._grace,
            import_from=self._import_from,
        )

    def describe(self, process: TrainingProcess, timeout: float) -> Catalogue:
        """Ask a training process for its workloads.

        Args:
            process: just launched.
            timeout: how long to wait, in seconds; the import of torch is in it.

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
        alone = LocalLauncher(
            threads=self._threads,
            kill_grace_seconds=self._grace,
            command=self._program,
            registrations=Registrations([registration]),
            import_from=self._import_from,
        )
        process = alone.launch()
        try:
            return alone.describe(process, timeout)
        finally:
            process.stop()
