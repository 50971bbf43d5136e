"""The truth that searches are compared with: a dense grid of thresholds under many seeds, trained once and kept.

Every lane is trained to the end, whatever becomes of it; only a non-finite loss or gradient ends it. Which lanes count
as diverged is decided when a search reads the table, because that depends on the steps at which it looks.

Shape letters: K = settings, S = seeds, R = rungs.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.search_problems import SearchProblem
from tuner.evidence import Features, LaneResult, NormSketch, Reference
from tuner.lanes import trainable
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, RungReached, TrialEnded
from tuner.training.initial import initial_model
from tuner.training.loop import train_cohort
from tuner.training.probe import measure_reference
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import batch_size

#: Seeds of one cohort: more lanes at once are hardly faster.
SEEDS_PER_COHORT = 16
#: Thresholds relative to the probe's median gradient norm.
KAPPAS = (1e-3, 10.0)
#: Factors on the learning rate at which training without clipping is known too.
RATE_SCALES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7)
#: What a search with three seeds and eight settings trains together.
LANES_TIMED = 24
#: Quantiles of a lane's gradient norms, as in `tuner.evidence.NormSketch`.
QUANTILES = ("median", "q90", "q99", "max")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What every setting reaches under every seed, at every rung.

    Attributes:
        machine: on which it was trained and timed.
        num_steps: of a full run.
        reference: what the probe measured: quantiles of the L2 norm and of the largest element, the number of batches,
            optimizer, learning rate, and numbers of parameters and tensors.
        settings: as text, length K; *off* first, thresholds ascending, then *off* at other learning rates.
        rung_steps: ascending, length R; the last is the full run.
        initial: objective before the first step, length S.
        values: shape (K, S, R); None where a lane had ended with a non-finite loss or gradient.
        divergence: step of that end, shape (K, S); None without.
        first_clipped: first step whose gradient was scaled, shape (K, S); None without.
        clip_fraction: share of steps, shape (K, S).
        mean_scale: mean factor on the gradient norm, shape (K, S).
        norms: `QUANTILES` before clipping, shape (K, S, 4); None where no step was finite.
        solo_seconds: measured seconds per optimizer step, one lane at a time.
        lanes_seconds: the same per step of one lane, 24 lanes together.
    """

    machine: dict[str, Any]
    num_steps: int
    reference: dict[str, Any]
    settings: list[str]
    rung_steps: list[int]
    initial: list[float]
    values: list[list[list[float | None]]]
    divergence: list[list[int | None]]
    first_clipped: list[list[int | None]]
    clip_fraction: list[list[float]]
    mean_scale: list[list[float]]
    norms: list[list[list[float] | None]]
    solo_seconds: float
    lanes_seconds: float

    @property
    def num_seeds(self) -> int:
        """The truth's training seeds are 0, 1, ... below this."""
        return len(self.initial)


def rung_steps(num_steps: int) -> tuple[int, ...]:
    """Steps at which any of the compared searches looks: tenths, and powers of 2, 3 and 4 back from the end.

    Args:
        num_steps: of a full run, >= 10.

    Returns:
        Ascending steps.

    Example:
        >>> rung_steps(40)
        (1, 2, 4, 5, 8, 10, 12, 13, 16, 20, 24, 28, 32, 36, 40)
    """
    powers = {num_steps // factor**level for factor in (2, 3, 4) for level in range(5)}
    tenths = {num_steps * part // 10 for part in range(1, 11)}
    return tuple(sorted(step for step in powers | tenths if step > 0))


def thresholds(reference: Reference, count: int) -> list[float]:
    """A log-spaced grid around the median gradient norm, at 4 significant digits."""
    low, high = KAPPAS
    median = reference.l2_norm.median
    return [float(f"{median * low * (high / low) ** (part / (count - 1)):.4g}") for part in range(count)]


def train_truth(problem: SearchProblem, *, machine: dict[str, Any], tell: Callable[[str], None]) -> Truth:
    """Train the whole grid.

    Args:
        problem: what to train.
        machine: facts about it, to be kept.
        tell: called with a line of progress per cohort.

    Returns:
        The table.
    """
    workload, seeds = problem.make(), tuple(range(problem.num_seeds))
    reference = measure_reference(workload, seeds[:16])
    grid = [OFF_SETTING] + [
        ClipSetting(method="global_norm", threshold=each)
        for each in thresholds(reference, problem.num_thresholds)
    ]
    results: dict[tuple[str, int], tuple[LaneResult, list[float | None]]] = {}
    for first in range(0, len(seeds), SEEDS_PER_COHORT):
        part = seeds[first : first + SEEDS_PER_COHORT]
        started = time.monotonic()
        results |= train_settings(problem, workload, grid, part)
        tell(f"seeds {part[0]} to {part[-1]}: {time.monotonic() - started:.0f} s")
    texts = [str(setting) for setting in grid]
    for scale in RATE_SCALES:
        found = train_settings(problem, problem.make(scale), [OFF_SETTING], seeds)
        texts.append(f"none@{scale:g}")
        results |= {(texts[-1], seed): result for (_, seed), result in found.items()}
    tell("learning rates done")
    return _table(problem, workload, reference, texts, results, machine)


def train_settings(
    problem: SearchProblem,
    workload: AnyWorkload,
    settings: Sequence[ClipSetting],
    seeds: Sequence[int],
    *,
    solo: bool = False,
) -> dict[tuple[str, int], tuple[LaneResult, list[float | None]]]:
    """Train every setting under every seed to the end.

    Args:
        problem: gives the length.
        workload: to train.
        settings: at least one.
        seeds: at least one.
        solo: one lane at a time instead of all together.

    Returns:
        Per setting (as text) and seed what was recorded, and the objective at each of `rung_steps`.
    """
    cohort = Cohort(
        workload=workload.name,
        parameters=workload.parameter_values,
        trials=tuple(CohortTrial(id=str(each), setting=each) for each in settings),
        seeds=tuple(seeds),
        rung_steps=rung_steps(problem.num_steps),
        divergence_factor=math.inf,
        lanes="solo" if solo else min(problem.max_lanes, len(settings) * len(seeds)),
    )
    values: dict[tuple[str, int], list[float | None]] = {}
    results = {}
    for event in train_cohort(cohort, workload):
        if isinstance(event, RungReached):
            for lane in event.values:
                values.setdefault((lane.trial_id, lane.seed), []).append(lane.value)
        elif isinstance(event, TrialEnded):
            for result in event.lanes:
                key = event.trial_id, result.seed
                results[key] = result, values[key]
    return results


def initial_value(workload: AnyWorkload, seed: int) -> float:
    """The objective before the first step, mean over the held-out examples."""
    model = initial_model(workload, seed, torch.device("cpu")).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in workload.validation_batches():
            size = batch_size(list(batch))
            total += float(workload.metric(model, batch)) * size
            count += size
    return total / count


def _table(
    problem: SearchProblem,
    workload: AnyWorkload,
    reference: Reference,
    texts: list[str],
    results: dict[tuple[str, int], tuple[LaneResult, list[float | None]]],
    machine: dict[str, Any],
) -> Truth:
    num_seeds = problem.num_seeds
    lanes = [[results[text, seed][0] for seed in range(num_seeds)] for text in texts]
    return Truth(
        machine=machine,
        num_steps=problem.num_steps,
        reference=_reference_json(reference, workload),
        settings=texts,
        rung_steps=list(rung_steps(problem.num_steps)),
        initial=[rounded(initial_value(workload, seed)) for seed in range(num_seeds)],
        values=[[_rounded(results[text, seed][1]) for seed in range(num_seeds)] for text in texts],
        divergence=[[lane.divergence_step for lane in row] for row in lanes],
        first_clipped=[[lane.first_clipped_step for lane in row] for row in lanes],
        clip_fraction=[[rounded(lane.clip_fraction) for lane in row] for row in lanes],
        mean_scale=[[rounded(lane.mean_scale) for lane in row] for row in lanes],
        norms=[[_quantiles(lane.norms) for lane in row] for row in lanes],
        solo_seconds=seconds_per_step(problem, workload, reference, num_seeds=1, num_settings=1),
        lanes_seconds=seconds_per_step(
            problem, workload, reference, num_seeds=3, num_settings=LANES_TIMED // 3
        ),
    )


def seconds_per_step(
    problem: SearchProblem,
    workload: AnyWorkload,
    reference: Reference,
    *,
    num_seeds: int,
    num_settings: int,
    rounds: int = 3,
) -> float:
    """Seconds of training per optimizer step of one lane, the fastest of some rounds; evaluation is not in it."""
    settings = [
        ClipSetting(method="global_norm", threshold=each)
        for each in thresholds(reference, num_settings + 1)[1:]
    ]
    rates = []
    for _ in range(rounds):
        found = train_settings(problem, workload, settings, range(num_seeds), solo=num_settings == 1)
        lanes = [result for result, _ in found.values()]
        rates.append(sum(lane.seconds for lane in lanes) / sum(lane.num_steps for lane in lanes))
    return float(f"{min(rates):.4g}")


def reference_of(truth: Truth) -> Reference:
    """The probe's result as searches see it."""
    kept = truth.reference
    return Reference(
        l2_norm=NormSketch(**kept["l2_norm"]),
        max_abs=NormSketch(**kept["max_abs"]),
        num_batches=kept["num_batches"],
        features=Features(
            model_signature="0" * 16,
            num_parameters=kept["num_parameters"],
            num_tensors=kept["num_tensors"],
            optimizer=kept["optimizer"],
            learning_rate=kept["learning_rate"],
            batch_size=None,
            precision="fp32",
        ),
    )


def _reference_json(reference: Reference, workload: AnyWorkload) -> dict[str, Any]:
    parameters = trainable(workload.model()).values()
    return {
        "l2_norm": asdict(reference.l2_norm),
        "max_abs": asdict(reference.max_abs),
        "num_batches": reference.num_batches,
        "optimizer": type(workload.optimizer()).__name__.lower(),
        "learning_rate": workload.parameters.learning_rate,
        "num_parameters": sum(each.numel() for each in parameters),
        "num_tensors": len(parameters),
    }


def rounded(value: float) -> float:
    """A number at 6 significant digits: more is noise of the arithmetic, and the file holds hundred thousands."""
    return float(f"{value:.6g}")


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else rounded(value) for value in values]


def _quantiles(norms: NormSketch | None) -> list[float] | None:
    if norms is None:
        return None
    return [float(f"{getattr(norms, name):.4g}") for name in QUANTILES]


def write_truth(path: Path, tables: dict[str, Truth]) -> None:
    """Keep tables, by problem."""
    document = json.dumps({name: asdict(table) for name, table in tables.items()}, separators=(",", ":"))
    path.write_bytes(gzip.compress(document.encode(), mtime=0))


def read_truth(path: Path) -> dict[str, Truth]:
    """Tables by problem; empty without a file."""
    if not path.exists():
        return {}
    document = json.loads(gzip.decompress(path.read_bytes()))
    return {name: Truth(**table) for name, table in document.items()}
