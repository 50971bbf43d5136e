"""Start training processes on this machine, and learn from one which workloads it can train."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from service.devices import VISIBLE, Device
from service.launchers.launcher import AbstractLauncher
from service.launchers.process import TrainingProcess
from service.settings import Settings
from tuner.workloads.registrations import BUILT_IN, Registrations

#: The program that trains.
TRAINER = (sys.executable, "-m", "service.launchers.trainer")


class LocalLauncher(AbstractLauncher):
    """Starts training processes on this machine.

    Args:
        threads: CPU threads for torch, 0 = torch's choice.
        kill_grace_seconds: time between SIGTERM and SIGKILL.
        command: the training program.
        registrations: the workloads that it may import.
        import_from: see `service.launchers.process.training_environment`.
        also: likewise.
        device: the only one that its processes see; None is all.
    """

    def __init__(
        self,
        *,
        threads: int,
        kill_grace_seconds: float,
        command: Sequence[str] = TRAINER,
        registrations: Registrations = BUILT_IN,
        import_from: Sequence[str] = (),
        also: Sequence[str] = (),
        device: Device | None = None,
    ) -> None:
        self.registrations = registrations
        self._program = tuple(command)
        self._command = (*command, "--workloads", json.dumps(registrations.to_json(), separators=(",", ":")))
        self._threads = threads
        self._grace = kill_grace_seconds
        self._import_from = tuple(import_from)
        self._also = tuple(also)
        self._device = device

    @classmethod
    def of(cls, settings: Settings, device: Device | None = None) -> LocalLauncher:
        """The launcher of an installation.

        Args:
            settings: threads, times, and which workloads are registered.
            device: the only one that its processes see; None is all.

        Returns:
            The launcher.

        Raises:
            SpecError: if two registrations have one name.
        """
        return cls(
            threads=settings.training_threads if device is None else device.threads,
            kill_grace_seconds=settings.kill_grace_seconds,
            registrations=settings.registrations,
            also=settings.passed_on,
            device=device,
        )

    def launch(self) -> TrainingProcess:
        """A new training process; it says `Ready` once torch is imported."""
        return TrainingProcess(
            self._command,
            threads=self._threads,
            kill_grace_seconds=self._grace,
            import_from=self._import_from,
            also=self._also,
            environment={} if self._device is None else self._device.environment(os.environ.get(VISIBLE, "")),
        )

    def _launch_for(self, registrations: Registrations) -> TrainingProcess:
        return LocalLauncher(
            threads=self._threads,
            kill_grace_seconds=self._grace,
            command=self._program,
            registrations=registrations,
            import_from=self._import_from,
            also=self._also,
            device=self._device,
        ).launch()
