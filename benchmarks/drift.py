"""How often `cliptune drift` errs, what it finds, and how long it takes, on real probes of the built-in workloads.

``python benchmarks/drift.py --out benchmarks/results/drift.jsonl`` writes one JSON line per case. Gradients of many
seeds are measured once at their initial weights, 34 of each, as a study of three seeds does. Then probes are put
together from them by drawing seeds without replacement: three for the study's, others for the one of now.

``false_alarms`` is the share of draws in which the same code drifts, at a threshold that 90, 50 and 10 % of the
gradients pass and at one that none does; ``found`` the share in which a change is found: the same gradients times a
factor, and real changes of a parameter. ``unsettled`` beside them is the share that tells that it can't tell.
``seconds`` is the command's wall time: where nothing changed, and where a second probe is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import facts  # noqa: E402
from service.ci.drift import NUM_SEEDS, Change, compare  # noqa: E402
from service.ci.drift_figures import FACTOR  # noqa: E402
from service.ci.lock import LOCK_FILE, Lock, write_lock  # noqa: E402
from service.ci.probed import Probed, probed  # noqa: E402
from service.ci.recommended import Recommended  # noqa: E402
from tuner.evidence import NormSketch, Reference, SeedNorms, Verdict  # noqa: E402
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec  # noqa: E402

#: Workload with its parameters, and real changes of them.
CASES: tuple[tuple[str, dict[str, Any], tuple[dict[str, Any], ...]], ...] = (
    ("digits-mlp", {}, ({"hidden": 256}, {"batch_size": 8})),
    ("digits-mlp", {"hidden": 2}, ({"hidden": 32},)),
    ("digits-mlp", {"batch_size": 4}, ({"batch_size": 64},)),
    ("charlm-rnn", {}, ({"hidden": 256}, {"batch_size": 2})),
    ("charlm-rnn", {"hidden": 4, "batch_size": 2}, ({"hidden": 64},)),
)
THEN_SEEDS, PER_SEED = 3, 34
QUANTILES = (0.1, 0.5, 0.9, 1.0)
SCALES = (2.0, 0.5, 1.5, 1.2)


@dataclass(frozen=True)
class Gradients:
    """Norms and largest elements of one seed, and their sketches."""

    norms: list[float]
    largest: list[float]

    def times(self, factor: float) -> Gradients:
        """The gradients of a loss that is so many times as large."""
        return Gradients([factor * each for each in self.norms], [factor * each for each in self.largest])

    @property
    def sketches(self) -> SeedNorms:
        """As a probe keeps them."""
        l2, most = NormSketch.of(self.norms), NormSketch.of(self.largest)
        assert l2 is not None and most is not None
        return SeedNorms(l2_norm=l2, max_abs=most)


def resolved(workload: str, parameters: dict[str, Any]) -> dict[str, Any]:
    from tuner.parameters import resolve_parameters
    from tuner.workloads import describe_workloads

    fields = next(each for each in describe_workloads() if each.name == workload).parameters
    return resolve_parameters(fields, parameters)


def measured(workload: str, parameters: dict[str, Any], seeds: range) -> list[Gradients]:
    import torch

    from tuner.training.probe import measure_seed
    from tuner.workloads import create_workload

    built = create_workload(workload, resolved(workload, parameters))
    built.device = torch.device("cpu")
    found = []
    for seed in seeds:
        rows = measure_seed(built, seed, PER_SEED).tolist()
        found.append(Gradients([row[0] for row in rows], [row[1] for row in rows]))
    return found


def pooled(parts: Sequence[Gradients]) -> SeedNorms:
    norms = [norm for each in parts for norm in each.norms]
    return Gradients(norms, [one for each in parts for one in each.largest]).sketches


def then_of(parts: Sequence[Gradients]) -> Probed:
    whole = pooled(parts)
    return Probed(
        l2_norm=whole.l2_norm,
        max_abs=whole.max_abs,
        num_batches=len(parts) * PER_SEED,
        num_seeds=len(parts),
        num_steps=100,
    )


def now_of(parts: Sequence[Gradients]) -> Reference:
    whole = pooled(parts)
    return Reference(
        l2_norm=whole.l2_norm,
        max_abs=whole.max_abs,
        num_batches=len(parts) * PER_SEED,
        by_seed=tuple(each.sketches for each in parts),
    )


def settings(parts: Sequence[Gradients]) -> list[ClipSetting]:
    """Thresholds among all gradients, one of them of elements, and off."""
    norms = sorted(norm for each in parts for norm in each.norms)
    largest = sorted(one for each in parts for one in each.largest)
    places = [norms[min(int(share * len(norms)), len(norms) - 1)] for share in QUANTILES]
    found = [ClipSetting(method="global_norm", threshold=each) for each in (*places[:-1], 2 * places[-1])]
    return [*found, ClipSetting(method="value", threshold=largest[len(largest) // 2]), OFF_SETTING]


def rates(
    before: Sequence[Gradients], after: Sequence[Gradients] | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Shares of draws that drift and that are unsettled, the worst setting's; None for ``after`` draws other seeds."""
    chance, counts = random.Random(options.seed), dict[ClipSetting, list[int]]()
    tried = settings(before)
    for _ in range(options.draws):
        drawn = chance.sample(range(len(before)), THEN_SEEDS + options.now_seeds)
        ours, theirs = drawn[:THEN_SEEDS], drawn[THEN_SEEDS:]
        then = then_of([before[each] for each in ours])
        now = now_of([(after or before)[each] for each in theirs])
        for setting in tried:
            found = compare(then, now, setting)
            count = counts.setdefault(setting, [0, 0])
            count[0] += found.has_drifted
            count[1] += found.change is Change.UNSETTLED
    drifted = [count[0] / options.draws for count in counts.values()]
    return {
        "least": min(drifted),
        "most": max(drifted),
        "mean": round(sum(drifted) / len(drifted), 4),
        "unsettled": max(count[1] / options.draws for count in counts.values()),
    }


def spread(parts: Sequence[Gradients]) -> float:
    """Standard deviation over seeds of the median's logarithm: what a user's own model may be compared with."""
    return statistics.stdev(math.log(each.sketches.l2_norm.median) for each in parts)


def accuracy(number: int, options: argparse.Namespace) -> dict[str, Any]:
    workload, parameters, changes = CASES[number]
    seeds = range(options.first_seed, options.first_seed + options.pool)
    before = measured(workload, parameters, seeds)
    scales, changes = ((), ()) if options.false_alarms_only else (SCALES, changes)
    found = {
        f"norms x {factor:g}": rates(before, [each.times(factor) for each in before], options)
        for factor in scales
    }
    for change in changes:
        after = measured(workload, parameters | change, seeds)
        median = pooled(after).l2_norm.median / pooled(before).l2_norm.median
        name = ", ".join(f"{name}={value}" for name, value in change.items())
        found[name] = rates(before, after, options) | {"median_ratio": round(median, 3)}
    return {
        "case": "accuracy",
        "workload": workload,
        "parameters": parameters,
        "factor": FACTOR,
        "seeds": {
            "first": options.first_seed,
            "pool": options.pool,
            "then": THEN_SEEDS,
            "now": options.now_seeds,
        },
        "draws": options.draws,
        "settings": [str(each) for each in settings(before)],
        "spread_of_seeds": round(spread(before), 4),
        "false_alarms": rates(before, None, options),
        "found": found,
    }


def keep(root: Path, workload: str) -> None:
    """A lock that recommends the probe's median for a workload, as `cliptune check --write-lock` leaves it."""
    from dataclasses import asdict

    from tuner.training.probe import measure_reference
    from tuner.workloads import create_workload

    parameters = resolved(workload, {})
    reference = measure_reference(create_workload(workload, parameters), range(THEN_SEEDS))
    spec = StudySpec(workload=workload, parameters=parameters, num_seeds=THEN_SEEDS).to_json()
    setting = ClipSetting(method="global_norm", threshold=reference.norms.median)
    kept = Recommended(
        study_id="0f5a1b2c-0000-4000-8000-000000000000",
        recommendation_id="7e57ab1e-0000-4000-8000-000000000000",
        version=1,
        workload=workload,
        fingerprint="0123456789abcdef",
        verdict=Verdict.CLIP,
        setting=setting,
        interval=None,
        best=setting,
        methods=("global_norm",),
        objective="val_loss",
        margin=None,
        reason="a benchmark",
        num_seeds=THEN_SEEDS,
        more_seeds=None,
        kappa=1.0,
        clip_fraction=None,
        created_at=datetime.now(UTC),
        probed=probed(asdict(reference), spec, device="cpu"),
    )
    (root / ".git").mkdir(parents=True)
    write_lock(root / LOCK_FILE, Lock({}).with_entry("train.yaml", "max_grad_norm", kept))


def cpu_seconds() -> float:
    """Of processes that have ended, the training process among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(root: Path, *options: str) -> tuple[tuple[float, float], dict[str, Any]]:
    """Wall time and CPU time of the command, and what it told.

    Raises:
        SystemExit: if it told nothing.
    """
    command = [
        str(Path(sys.executable).parent / "cliptune"),
        "drift",
        "--offline",
        "--format",
        "json",
        *options,
    ]
    started, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if not done.stdout:
        raise SystemExit(done.stderr)
    return (elapsed, cpu_seconds() - used), json.loads(done.stdout)["findings"][0]


def median(taken: Sequence[tuple[float, float]], place: int) -> float:
    return round(statistics.median(each[place] for each in taken), 2)


def duration(workload: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of several runs, both ways in turns."""
    ways: dict[str, tuple[str, ...]] = {
        "unchanged": (),
        "changed": ("--workload", workload, "--param", "batch_size=4"),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        keep(root, workload)
        for _ in range(options.runs):
            for name, more in ways.items():
                elapsed, told[name] = seconds(root, *more)
                taken[name].append(elapsed)
    return {
        "case": "duration",
        "workload": workload,
        "runs": options.runs,
        "median_seconds": {name: median(each, 0) for name, each in taken.items()},
        "most_seconds": {name: round(max(each)[0], 2) for name, each in taken.items()},
        "median_cpu_seconds": {name: median(each, 1) for name, each in taken.items()},
        "is_repeat": {name: each["is_repeat"] for name, each in told.items()},
        "change": {name: each["change"] for name, each in told.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000, help="probes put together per rate")
    parser.add_argument("--pool", type=int, default=120, help="seeds that are measured per case")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="of the pool: others were never judged before"
    )
    parser.add_argument("--false-alarms-only", action="store_true", help="measure no change of the code")
    parser.add_argument("--now-seeds", type=int, default=NUM_SEEDS, help="seeds of the probe of now")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--runs", type=int, default=5, help="of the command; 0 for none")
    parser.add_argument(
        "--cases", default="", help="numbers of accuracy cases, separated by commas, or none; all by default"
    )
    parser.add_argument("--workloads", default="digits-mlp,charlm-rnn", help="whose duration is measured")
    parser.add_argument("--out", type=Path, help="keep the lines here as well")
    options = parser.parse_args()
    numbers = "" if options.cases == "none" else options.cases or ",".join(map(str, range(len(CASES))))
    wanted = map(int, filter(None, numbers.split(",")))
    lines = []
    for result in chain(
        (accuracy(number, options) for number in wanted),
        (duration(workload, options) for workload in options.workloads.split(",") if options.runs),
    ):
        line = json.dumps(result | {"machine": facts()})
        print(line, flush=True)
        lines.append(f"{line}\n")
    if options.out:
        options.out.write_text("".join(lines))


if __name__ == "__main__":
    main()
