"""Lane-steps per second: the lane engine against the loops a user would write, on the same lanes in the same run.

``python benchmarks/lanes.py --case digits-mlp --lanes 1,4,16,64`` prints one JSON line per contestant and number of
lanes, and at the end a table with the goals to stderr. A lane-step is one optimizer step of one lane. The contestants:

- ``serial``: the plain module, one lane after the other, torch's default optimizer implementation and
  ``clip_grad_norm_``; ``serial-fused`` the same with a fused optimizer;
- ``processes``: the same loop in as many processes as cores, each with one thread and its share of the lanes;
- ``solo``: `tuner.training.solo`, one lane at a time; ``lanes``: all lanes as one program, nothing shared;
  ``auto``: whichever of the two the library takes by itself;
- ``serial-off`` and ``lanes-off``: no clipping at all; ``lanes-shared``: trials that equal *off* are not trained twice,
  and lane-steps are counted as the study reports them.

Rounds in turns: in each round every contestant trains for about ``--seconds``, and ratios are taken within a round.
Every contestant runs with one torch thread or with as many as there are cores, whichever was faster in a trial
(``processes`` always with one each). Building (models, recording, calibration, starting processes) is not in the
rates but told beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

import torch  # noqa: E402

from benchmarks.lane_cases import CASES, activation_bytes, num_states  # noqa: E402
from benchmarks.lane_contestants import (  # noqa: E402
    CONTESTANTS,
    Contestant,
    Problem,
    names_for,
    peak_bytes,
    wait,
)
from benchmarks.machine import facts  # noqa: E402
from tuner.lanes import trainable  # noqa: E402
from tuner.training.probe import measure_reference  # noqa: E402

#: A number of lanes is skipped if a step of it would take longer, or more than this share of the free memory.
MAX_STEP_SECONDS = 5.0
MAX_MEMORY_SHARE = 0.7
#: Whose memory is measured; the others hold the same.
MEASURED_MEMORY = ("serial", "solo", "lanes", "auto")
#: What `auto` is compared with: everything it could have chosen, and the plain loops.
ALTERNATIVES = ("serial", "serial-fused", "solo", "lanes")


@dataclasses.dataclass
class Entry:
    """A contestant in the race.

    Attributes:
        threads: torch threads while it trains.
        steps: steps of one repetition.
        rates: lane-steps per second, one per round.
    """

    contestant: Contestant
    threads: int = 1
    steps: int = 1
    threads_tried: dict[int, float] = dataclasses.field(default_factory=dict)
    rates: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    options = parse()
    rows: list[dict[str, Any]] = []
    lines = Lines(options.out)
    for case in options.case.split(","):
        per_lane_step = 0.0
        for num_lanes in numbers(options.lanes) or CASES[case].lanes:
            problem = make_problem(case, num_lanes, options)
            reason = why_skipped(problem, per_lane_step)
            if reason:
                lines.write(head(problem) | {"skipped": reason})
                continue
            found = race(problem, options)
            for row in found:
                lines.write(row)
            rows += found
            per_lane_step = min(1 / row["lane_steps_per_second"] for row in found)
    print(table(rows), file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default=",".join(CASES), help="names separated by commas; all by default")
    parser.add_argument("--lanes", default="", help="numbers separated by commas; by default the case's own")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="names separated by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of one repetition")
    parser.add_argument("--compile", action="store_true", help="compile the lane programs")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="tiny counts, to see that it works")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.05
    return options


class Lines:
    """Where the JSON lines go."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._machine = facts()

    def write(self, row: dict[str, Any]) -> None:
        """Print a line, and keep it."""
        line = json.dumps(row | {"machine": self._machine})
        print(line, flush=True)
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(line + "\n")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def make_problem(case: str, num_lanes: int, options: argparse.Namespace) -> Problem:
    reference = measure_reference(CASES[case].make(), (0,), num_batches=16, device=options.device)
    return Problem(
        case=case,
        num_lanes=num_lanes,
        device=options.device,
        median_norm=reference.l2_norm.median,
        largest_norm=reference.l2_norm.max,
        num_threads=os.cpu_count() or 1,
        compiles=options.compile,
    )


def expected_bytes(problem: Problem) -> tuple[int, int]:
    """What the lanes need at least: weights, gradients and optimizer states; and what their backward needs."""
    workload = problem.workload()
    parameters = sum(each.numel() for each in trainable(workload.model()).values())
    kept = parameters * 4 * (2 + num_states(workload.optimizer()))
    return problem.num_lanes * kept, problem.num_lanes * activation_bytes(
        workload, torch.device(problem.device)
    )


def why_skipped(problem: Problem, per_lane_step: float) -> str | None:
    """Why this many lanes are not measured; None if they are."""
    expected = problem.num_lanes * per_lane_step
    if expected > MAX_STEP_SECONDS:
        return f"one step would take about {expected:.0f} s"
    if torch.device(problem.device).type == "cuda":
        free = torch.cuda.mem_get_info(problem.device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Twice: a backward holds gradients of what it holds.
    needed = 2 * sum(expected_bytes(problem))
    if needed > MAX_MEMORY_SHARE * free:
        return f"needs about {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"
    return None


def race(problem: Problem, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Build all contestants, let them train in turns, and tell how they did."""
    torch.set_num_threads(problem.num_threads)
    entries = {
        name: Entry(CONTESTANTS[name](problem)) for name in names_for(problem, options.contestants.split(","))
    }
    try:
        for name, entry in entries.items():
            prepare(entry, problem, options.seconds, is_free=name != "processes")
        for turn in range(options.rounds):
            names = list(entries)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                entries[name].rates.append(timed(entries[name], problem))
    finally:
        for entry in entries.values():
            entry.contestant.close()
    torch.set_num_threads(problem.num_threads)
    rates = {name: entry.rates for name, entry in entries.items()}
    rows = [head(problem) | told(name, entry) | ratios(name, rates) for name, entry in entries.items()]
    del entries
    gc.collect()
    return rows if options.no_memory else [row | memory(problem, row["contestant"]) for row in rows]


def prepare(entry: Entry, problem: Problem, seconds: float, *, is_free: bool) -> None:
    """Warm up, choose the number of threads, and how many steps make a repetition."""
    entry.contestant.train(1)
    choices = sorted({1, problem.num_threads}) if is_free else [1]
    # The last choice is tried twice, because the first attempt of all warms up.
    for threads in (choices[-1], *choices):
        entry.threads = threads
        entry.steps = 1
        while True:
            rate, took = clocked(entry, problem)
            if took > seconds / 4:
                break
            entry.steps *= 2 if took < seconds / 16 else math.ceil(seconds / 4 / took)
        entry.threads_tried[threads] = rate
    entry.threads = max(entry.threads_tried, key=lambda each: entry.threads_tried[each])
    rate, took = clocked(entry, problem)
    entry.steps = max(1, round(entry.steps * seconds / took))
    if entry.steps > 32:
        entry.steps -= entry.steps % 32  # the engines look at their lanes every 32 steps


def clocked(entry: Entry, problem: Problem) -> tuple[float, float]:
    """Lane-steps per second and seconds of one repetition."""
    torch.set_num_threads(entry.threads)
    wait(problem.device)
    started = time.perf_counter()
    lane_steps = entry.contestant.train(entry.steps)
    wait(problem.device)
    took = time.perf_counter() - started
    return lane_steps / took, took


def timed(entry: Entry, problem: Problem) -> float:
    return clocked(entry, problem)[0]


def head(problem: Problem) -> dict[str, Any]:
    device = torch.device(problem.device)
    return {
        "benchmark": "lanes",
        "case": problem.case,
        "lanes": problem.num_lanes,
        "seeds": len(problem.seeds),
        "settings": problem.num_lanes // len(problem.seeds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "compiled": problem.compiles,
    }


def told(name: str, entry: Entry) -> dict[str, Any]:
    return {
        "contestant": name,
        "lane_steps_per_second": round(statistics.median(entry.rates), 2),
        "rates": [round(each, 2) for each in entry.rates],
        "threads": entry.threads,
        "threads_tried": {threads: round(rate, 2) for threads, rate in entry.threads_tried.items()},
        "steps_per_round": entry.steps,
        **entry.contestant.told,
    }


def ratios(name: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as fast as others, round by round: median, least, most."""
    mine = rates[name]
    found = {
        f"times_{other.replace('-', '_')}": spread(mine, rates[other])
        for other in ("serial", "serial-fused", "processes")
        if other in rates and other != name
    }
    if name == "auto":
        others = [rates[other] for other in ALTERNATIVES if other in rates]
        found["times_best_alternative"] = spread(mine, [max(turn) for turn in zip(*others, strict=True)])
    if name == "lanes-off" and "serial-off" in rates:
        found["times_serial_off"] = spread(mine, rates["serial-off"])
    if name == "lanes" and "lanes-off" in rates:
        found["times_lanes_off"] = spread(mine, rates["lanes-off"])
    return found


def spread(mine: Sequence[float], others: Iterable[float]) -> list[float]:
    each = [one / other for one, other in zip(mine, others, strict=True)]
    return [round(value, 3) for value in (statistics.median(each), min(each), max(each))]


def memory(problem: Problem, name: str) -> dict[str, Any]:
    """Peak memory of a contestant, and its share of what its lanes need at least."""
    if name not in MEASURED_MEMORY:
        return {}
    peak = peak_bytes(problem, name)
    held = problem if name != "serial" else dataclasses.replace(problem, num_lanes=1)
    state, activations = expected_bytes(held)
    return {
        "peak_bytes": peak,
        "state_bytes": state,
        "activation_bytes": activations,
        "memory_ratio": round(peak / state, 3),
        "memory_ratio_with_activations": round(peak / (state + activations), 3),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was reached, against the goals, as text."""
    columns = [
        "case",
        "L",
        "serial/s",
        "fused",
        "procs",
        "solo",
        "lanes",
        "auto",
        "auto/best",
        "path",
        "goal",
    ]
    lines = ["{:20} {:>4} {:>9} {:>6} {:>6} {:>6} {:>6} {:>6} {:>9} {:>6} {:>14}".format(*columns)]
    groups: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["lanes"]), {})[row["contestant"]] = row
    for (case, num_lanes), by_name in groups.items():
        auto, goal = by_name.get("auto", {}), CASES[case].goal
        times = [by_name.get(name, {}).get("times_serial", [math.nan])[0] for name in ORDER]
        wanted = ""
        if goal is not None and goal.num_lanes == num_lanes:
            wanted = f">= {goal.times:g}: {'yes' if times[ORDER.index('lanes')] >= goal.times else 'NO'}"
        lines.append(
            f"{case:20} {num_lanes:4} {by_name.get('serial', {}).get('lane_steps_per_second', math.nan):9.1f} "
            + " ".join(f"{each:6.2f}" for each in times)
            + f" {auto.get('times_best_alternative', [math.nan])[0]:9.2f} {auto.get('path', ''):>6} {wanted:>14}"
        )
    return "\n".join(lines)


#: Columns of the table: times as fast as `serial`.
ORDER = ("serial-fused", "processes", "solo", "lanes", "auto")


if __name__ == "__main__":
    main()
