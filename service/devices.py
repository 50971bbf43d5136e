"""What a worker of this machine trains on, read from CLIPTUNE_DEVICES: pure.

A device is a CUDA device, which the training process of its slot sees alone, or a share of the CPU with a number of
threads. Each is one slot: one training process at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from service.errors import SettingsError

_ITEM = re.compile(r"(cpu|cuda)(?::(\d{1,4}))?")
#: The variable that says which devices a process sees.
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """One device of a machine.

    Attributes:
        kind: as PyTorch calls it.
        index: which CUDA device, as PyTorch would number those that the worker sees; None for the CPU.
        threads: CPU threads of its training process, 0 = PyTorch's choice.
    """

    kind: Literal["cpu", "cuda"]
    index: int | None
    threads: int

    def environment(self, visible: str) -> dict[str, str]:
        """The variables that make it the only device a process sees.

        Args:
            visible: CUDA_VISIBLE_DEVICES of the worker, which may name devices by number or UUID; empty if not set.

        Returns:
            CUDA_VISIBLE_DEVICES: one entry, or empty for the CPU.

        Example:
            >>> Device("cuda", 1, 1).environment("4,GPU-7e2f")
            {'CUDA_VISIBLE_DEVICES': 'GPU-7e2f'}
        """
        if self.index is None:
            return {VISIBLE: ""}
        seen = [each.strip() for each in visible.split(",") if each.strip()]
        # An index beyond what the worker sees stays: the process then finds no device, and says so.
        return {
            VISIBLE: seen[self.index] if self.index < len(seen) else str(self.index) if not seen else "-1"
        }


def parse_devices(text: str, *, threads: int) -> tuple[Device, ...] | None:
    """Read CLIPTUNE_DEVICES.

    Args:
        text: ``auto``, or devices separated by commas.
        threads: CPU threads where a device does not say.

    Returns:
        The devices in their order; None for ``auto``.

    Raises:
        SettingsError: for a device that is none, or a CUDA device that is named twice.

    Example:
        >>> [(each.kind, each.index, each.threads) for each in parse_devices("cuda:1, cpu:4", threads=1)]
        [('cuda', 1, 1), ('cpu', None, 4)]
    """
    if text.strip() == "auto":
        return None
    found: list[Device] = []
    for item in (each.strip() for each in text.split(",")):
        match = _ITEM.fullmatch(item)
        if match is None or (match[1] == "cuda" and match[2] is None):
            raise SettingsError(
                f"{item!r} is no device; write auto, or cuda:0, cpu or cpu:4 (for four "
                "threads), separated by commas"
            )
        number = None if match[2] is None else int(match[2])
        if match[1] == "cpu":
            found.append(Device("cpu", None, threads if number is None else number))
        elif any(each.index == number for each in found):
            raise SettingsError(f"{item} is named twice: a device has one training at a time")
        else:
            found.append(Device("cuda", number, threads))
    return tuple(found)


def found_devices(kind: str, number: int, *, threads: int) -> tuple[Device, ...]:
    """The devices of a machine whose operator named none.

    Args:
        kind: what a training process says it trains on.
        number: how many of them it sees.
        threads: CPU threads of each.

    Returns:
        Every CUDA device, or one CPU.
    """
    if kind == "cuda":
        return tuple(Device("cuda", index, threads) for index in range(number))
    return (Device("cpu", None, threads),)


def slot_names(devices: tuple[Device, ...]) -> tuple[str, ...]:
    """A name for each device, different from each other.

    Args:
        devices: of one worker.

    Returns:
        ``cuda:0``, ``cpu``; several CPU slots are numbered.

    Example:
        >>> slot_names((Device("cpu", None, 1), Device("cpu", None, 1), Device("cuda", 0, 1)))
        ('cpu:0', 'cpu:1', 'cuda:0')
    """
    cpus = [each for each in devices if each.index is None]
    numbered = iter(range(len(cpus)))
    return tuple(
        f"cuda:{each.index}"
        if each.index is not None
        else f"cpu:{next(numbered)}"
        if len(cpus) > 1
        else "cpu"
        for each in devices
    )
