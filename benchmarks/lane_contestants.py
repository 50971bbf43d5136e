"""Ways to train the same lanes, each behind one call that takes some steps: what `benchmarks.lanes` races.

Building is apart from training, so that a plain loop is not charged for its models, nor lanes for their recording;
both are reported.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.lane_cases import CASES, plain_optimizer
from tuner.spec import ClipSetting
from tuner.training.auto import AutoEngine
from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort, CohortTrial
from tuner.training.engine import Engine, LaneId
from tuner.training.solo import SoloEngine
from tuner.workloads.base import AnyWorkload

MAX_SEEDS = 4
#: Length of a full run: what the engine's traces are sized for.
RUN_STEPS = 2000
#: Thresholds span this much to both sides of the median gradient norm.
SPAN = 30.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Which lanes to train; plain values, so that another process can be told.

    Attributes:
        case: a key of `CASES`.
        num_lanes: L = S seeds x K settings.
        device: where.
        median_norm: of the gradient at the initial weights, what the thresholds lie around.
        largest_norm: of the same gradients, what decides who starts as *off* where lanes share.
        num_threads: torch threads while a contestant is built.
        compiles: whether the lane program is compiled.
    """

    case: str
    num_lanes: int
    device: str
    median_norm: float
    largest_norm: float
    num_threads: int
    compiles: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """S seeds: as many as divide the lanes, at most `MAX_SEEDS`."""
        return tuple(range(max(n for n in range(1, MAX_SEEDS + 1) if self.num_lanes % n == 0)))

    @property
    def thresholds(self) -> list[float | None]:
        """K thresholds: log-spaced around the median norm, the first one off; a single one is the median."""
        num = self.num_lanes // len(self.seeds)
        if num == 1:
            return [self.median_norm]
        spaced = [self.median_norm * SPAN ** (2 * n / max(1, num - 2) - 1) for n in range(num - 1)]
        return [None, *spaced]

    def workload(self) -> AnyWorkload:
        """A fresh workload on the device."""
        workload = CASES[self.case].make()
        workload.device = torch.device(self.device)
        return workload

    def cohort(self, *, clips: bool = True, shares: bool = False) -> Cohort:
        """The lanes as the engines take them.

        Args:
            clips: False replaces every setting by off.
            shares: whether trials may start as the off lane of their seed.
        """
        thresholds = self.thresholds if clips else [None] * len(self.thresholds)
        return Cohort(
            workload=self.case,
            parameters={},
            trials=tuple(
                CohortTrial(id=f"trial-{n}", setting=_setting(each)) for n, each in enumerate(thresholds)
            ),
            seeds=self.seeds,
            rung_steps=(RUN_STEPS,),
            divergence_factor=math.inf,
            reference_norm=self.median_norm,
            largest_norm=self.largest_norm if shares else None,
        )


def _setting(threshold: float | None) -> ClipSetting:
    if threshold is None:
        return ClipSetting(method="none")
    return ClipSetting(method="global_norm", threshold=threshold)


class Contestant(Protocol):
    """Trains lanes; ``told`` holds what building it found out."""

    told: dict[str, Any]

    def train(self, num_steps: int) -> int:
        """Take so many steps with each lane whose turn it is; how many lane-steps that made."""

    def close(self) -> None:
        """Free what it holds outside this process."""


class Serial:
    """The loop around a plain module that a user would write: one lane, and the next one when it is done.

    Nothing is read back to the host but the last loss.
    """

    def __init__(self, problem: Problem, *, fused: bool = False, clips: bool = True) -> None:
        self.told: dict[str, Any] = {}
        self._workload = problem.workload()
        self._max_norm = problem.thresholds[-1] if clips else None
        self._step = 0
        torch.manual_seed(0)
        self._generator = torch.Generator().manual_seed(0)
        self._model = self._workload.model().to(problem.device).train()
        self._optimizer = plain_optimizer(self._workload.optimizer(), self._model.parameters(), fused=fused)

    def train(self, num_steps: int) -> int:  # noqa: D102
        for _ in range(num_steps):
            batch = self._workload.train_batch(self._step, self._generator)
            loss = self._workload.loss(self._model, batch)
            self._optimizer.zero_grad()
            loss.backward()
            if self._max_norm is not None:
                nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
            self._optimizer.step()
            self._step += 1
        loss.item()
        return num_steps

    def close(self) -> None:  # noqa: D102
        pass


class Processes:
    """The same loop in as many processes as cores, each with one thread and its share of the lanes."""

    def __init__(self, problem: Problem, *, count: int) -> None:
        started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(min(count, problem.num_lanes)):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=_serve, args=(problem, theirs), daemon=True))
            self._processes[-1].start()
            self._pipes.append(ours)
        resident = [pipe.recv() for pipe in self._pipes]
        self.told = {
            "processes": len(self._processes),
            "build_seconds": round(time.perf_counter() - started, 3),
            "resident_bytes": sum(resident),
        }

    def train(self, num_steps: int) -> int:  # noqa: D102
        for pipe in self._pipes:
            pipe.send(num_steps)
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:  # noqa: D102
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(0)
            process.join()


def _serve(problem: Problem, pipe: Connection) -> None:
    """Train when told to; 0 steps end it."""
    torch.set_num_threads(1)
    serial = Serial(problem)
    serial.train(3)
    pipe.send(resident_bytes("VmHWM"))
    while num_steps := pipe.recv():
        pipe.send(serial.train(num_steps))
        wait(problem.device)


class InEngine:
    """One of the library's engines; a batched one trains all lanes, a solo one the next lane in turn."""

    def __init__(self, problem: Problem, make: Callable[[], Engine]) -> None:
        started = time.perf_counter()
        self._engine = make()
        wait(problem.device)
        built = time.perf_counter()
        trials = problem.cohort().trials
        self._lanes = [LaneId(trial.id, seed) for seed in problem.seeds for trial in trials]
        self._turns = cycle(self._lanes)
        self._steps = dict.fromkeys(self._lanes, 0)
        self.train(1)
        wait(problem.device)
        choice = self._engine.choice
        self.told = {
            "build_seconds": round(built - started, 3),
            "first_step_seconds": round(time.perf_counter() - built, 3),
            "path": choice.path,
            "lanes_at_once": choice.num_lanes,
            "reason": choice.reason,
        }

    @property
    def _trains_one(self) -> bool:
        return self._engine.choice.path == "solo"

    def train(self, num_steps: int) -> int:  # noqa: D102
        lanes = [next(self._turns)] if self._trains_one else self._lanes
        goal = self._steps[lanes[0]] + num_steps
        self._steps |= dict.fromkeys(lanes, goal)
        return sum(each.lane_steps for each in self._engine.advance(lanes, goal))

    def close(self) -> None:  # noqa: D102
        pass


def _lanes(problem: Problem, **cohort: bool) -> InEngine:
    return InEngine(
        problem,
        lambda: BatchedEngine(
            problem.cohort(**cohort),
            problem.workload(),
            device=problem.device,
            max_lanes=problem.num_lanes,
            compiles=problem.compiles,
        ),
    )


def _auto(problem: Problem) -> InEngine:
    return InEngine(
        problem,
        lambda: AutoEngine(
            problem.cohort(), problem.workload(), device=problem.device, compiles=problem.compiles
        ),
    )


def _solo(problem: Problem) -> InEngine:
    return InEngine(problem, lambda: SoloEngine(problem.cohort(), problem.workload(), device=problem.device))


#: By name; the last three are not part of the race: clipping's own cost, and what sharing saves.
CONTESTANTS: dict[str, Callable[[Problem], Contestant]] = {
    "serial": Serial,
    "serial-fused": lambda problem: Serial(problem, fused=True),
    "processes": lambda problem: Processes(problem, count=multiprocessing.cpu_count()),
    "solo": _solo,
    "lanes": _lanes,
    "auto": _auto,
    "serial-off": lambda problem: Serial(problem, clips=False),
    "lanes-off": lambda problem: _lanes(problem, clips=False),
    "lanes-shared": lambda problem: _lanes(problem, shares=True),
}


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes(field: str) -> int:
    """This process's memory; ``VmRSS`` now, ``VmHWM`` at most.

    `resource.getrusage` gives no peak of one's own: a started process inherits its parent's.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak_bytes(problem: Problem, name: str) -> int:
    """What a contestant needs at its peak while it is built and takes three steps, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure_peak, args=(problem, name, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found: int = ours.recv()
    except EOFError:
        found = 0
    process.join()
    return found


def _measure_peak(problem: Problem, name: str, pipe: Connection) -> None:
    torch.set_num_threads(problem.num_threads)
    # A lane of the smallest case first, so that what the libraries allocate once is not counted.
    _take_steps(dataclasses.replace(problem, case="tiny-mlp", num_lanes=1, compiles=False), name)
    if torch.device(problem.device).type == "cuda":
        before = torch.cuda.memory_allocated(problem.device)
        torch.cuda.reset_peak_memory_stats(problem.device)
        _take_steps(problem, name)
        pipe.send(torch.cuda.max_memory_allocated(problem.device) - before)
        return
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    _take_steps(problem, name)
    pipe.send(resident_bytes("VmHWM") - before)


def _take_steps(problem: Problem, name: str) -> None:
    contestant = CONTESTANTS[name](problem)
    for _ in range(3):
        contestant.train(1)


def names_for(problem: Problem, wanted: Sequence[str]) -> list[str]:
    """The contestants that make sense for a problem, in the order of `CONTESTANTS`."""
    shares = len(problem.thresholds) > 2
    return [name for name in CONTESTANTS if name in wanted and (shares or name != "lanes-shared")]
