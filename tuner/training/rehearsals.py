"""What was found out about a workload's batched training, so that the next cohort of a study need not find out again.

Recorded programs, whether they agree with the plain module, and measured rates depend on the workload, its
parameters, the seeds and the device, not on the clip settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tuner.training.cohort import Cohort
from tuner.training.lane_program import LanePrograms
from tuner.workloads.base import AnyWorkload

#: Workloads remembered at most; the one asked for longest ago is forgotten first.
MAX_REHEARSALS = 4


@dataclass
class Rehearsal:
    """One workload under some seeds on one device.

    Attributes:
        workload: kept, so that nothing else can take its identity.
        programs: the recorded programs; None before the first engine was built.
        has_agreed: whether they were compared with the plain module.
        rates: lane-steps per second by settings in a batch; None where memory does not hold them.
        solo_per_second: lane-steps per second, one lane at a time; None before it was measured.
    """

    workload: AnyWorkload
    programs: LanePrograms | None = None
    has_agreed: bool = False
    rates: dict[int, float | None] = field(default_factory=dict)
    solo_per_second: float | None = None


class Rehearsals:
    """Rehearsals by what they depend on; keep one object as long as studies are trained in a process."""

    def __init__(self) -> None:
        self._known: dict[object, Rehearsal] = {}

    def of(self, cohort: Cohort, workload: AnyWorkload, device: torch.device, *, compiles: bool) -> Rehearsal:
        """What is known; at first nothing.

        Args:
            cohort: gives the seeds, the workload's name and its parameters.
            workload: a workload without a name of its own is told apart by its identity.
            device: where it trains.
            compiles: whether its programs are compiled.

        Returns:
            A rehearsal to read and to fill in.
        """
        parameters = tuple(sorted(cohort.parameters.items()))
        # A class made in a notebook has the name "custom", and so may the next one.
        identity = id(workload) if workload.name == "custom" else type(workload)
        key = (identity, parameters, cohort.seeds, device, compiles, workload.precision)
        found = self._known.pop(key, None) or Rehearsal(workload)
        self._known[key] = found
        while len(self._known) > MAX_REHEARSALS:
            del self._known[next(iter(self._known))]
        return found
