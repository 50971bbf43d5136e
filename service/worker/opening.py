"""What a worker can train, and on which slots: learned from a training process when the worker starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from service.devices import Device, found_devices, parse_devices, slot_names
from service.errors import TrainingError
from service.launchers.launcher import AbstractLauncher
from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Catalogue
from service.settings import Settings
from service.worker.pool import SlotPool
from service.worker.slot import Slot

log = structlog.get_logger(__name__)

#: How long a training process may take to import torch, in seconds.
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Opening:
    """A worker's means.

    Attributes:
        catalogue: the workloads of its installation.
        pool: its slots.
    """

    catalogue: Catalogue
    pool: SlotPool

    @property
    def device(self) -> str:
        """Kinds of its devices, in words."""
        return ", ".join(sorted({each["device"] for each in self.pool.to_json()}))

    @property
    def functions(self) -> frozenset[str]:
        """Names of the workloads that train with people's own loop."""
        return frozenset(each.name for each in self.catalogue.workloads if each.is_function)


def open_slots(settings: Settings) -> Opening:
    """Find the workloads and the devices; the process that was asked waits for the first study.

    Args:
        settings: of the worker.

    Returns:
        The means.

    Raises:
        TrainingError: if this installation can't train at all.
        SettingsError: if the launcher can't be used.
    """
    if settings.launcher == "ray":
        return _on_cluster(settings)
    launcher = LocalLauncher.of(settings)
    process = launcher.launch()
    catalogue, process_left = _described(launcher, process)
    devices = parse_devices(settings.devices, threads=settings.training_threads)
    ready = process.ready
    if devices is None:
        kind, number = (ready.device, ready.num_devices) if ready is not None else ("cpu", 1)
        devices = found_devices(kind, number, threads=settings.training_threads)
    pool = SlotPool(_local_slots(settings, devices), keeps_warm=True)
    # It saw every device, so that it can only stand for a slot that is all of them.
    plain = Device("cpu", None, settings.training_threads)
    if process_left is not None and ready is not None:
        sees_the_same = (ready.device, ready.num_devices) == (devices[0].kind, 1)
        if sees_the_same and (devices[0] == plain or devices[0].index == 0):
            pool.adopt(slot_names(devices)[0], process_left)
        else:
            process_left.stop()
    pool.warm()
    return Opening(catalogue, pool)


def _described(
    launcher: AbstractLauncher, process: TrainingProcess
) -> tuple[Catalogue, TrainingProcess | None]:
    """The workloads; and the process, if it is still of use.

    Raises:
        TrainingError: if there are none, or the process never was ready on a cluster.
    """
    try:
        return launcher.describe(process, _START_SECONDS), process
    except TrainingError as error:
        process.stop()
        if process.ready is None and not isinstance(launcher, LocalLauncher):
            # It is not attached to its cluster, which no workload has anything to do with.
            raise
        log.warning(
            "workloads are described one by one",
            action="describe_failed",
            pid=os.getpid(),
            error=str(error).splitlines()[0],
        )
        return launcher.describe_apart(_START_SECONDS), None


def _local_slots(settings: Settings, devices: Sequence[Device]) -> list[Slot]:
    return [
        Slot(
            name=name,
            launch=LocalLauncher.of(settings, device).launch,
            expects=device.kind,
            threads=device.threads,
        )
        for name, device in zip(slot_names(tuple(devices)), devices, strict=True)
    ]


def _on_cluster(settings: Settings) -> Opening:
    from service.launchers.ray import RayLauncher

    launcher = RayLauncher.of(settings)
    catalogue, process_left = _described(launcher, launcher.launch())
    slots = [
        Slot(name=f"ray:{index}", launch=launcher.launch, threads=settings.training_threads)
        for index in range(settings.ray_slots)
    ]
    pool = SlotPool(slots)
    if process_left is not None:
        pool.adopt(slots[0].name, process_left)
    return Opening(catalogue, pool)
