"""Is the search better than how people tune today? Studies, Optuna, a grid and ASHA on the same known learning curves.

``python benchmarks/search.py --truth`` trains the truth (about 30 minutes of one core) and keeps it in
``benchmarks/results/search-truth.json.gz``: 40 thresholds and *off* under 64 seeds (24 of both for the recurrent
network), on seven problems. Without it the kept truth is read and nothing is trained: every strategy answers 20 times
on every problem, each time with other seeds. One JSON line per problem and strategy tells its regret, cost and wrong
verdicts, the last line which goals are met. The same arguments always give the same figures.

``--set num_trials=12`` changes fields of this project's studies, and may be given several times; ``--calibration 2000``
simulates studies with a known answer instead (`benchmarks.search_calibration`).

- ``study``: this project, its defaults; 3 seeds per setting, then fresh ones;
- ``tpe-S``: Optuna's TPE and median pruner, 30 trials of S seeds; ``gp``: its Gaussian process, 30 trials of one seed;
- ``grid``: 8 thresholds and *off*, 3 seeds; ``asha``: 30 random settings, as Ray Tune stops them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

import numpy as np  # noqa: E402

from benchmarks import search_baselines as baselines  # noqa: E402
from benchmarks.machine import facts  # noqa: E402
from benchmarks.search_calibration import SCENARIOS, calibrate  # noqa: E402
from benchmarks.search_curves import AbstractCurves, TableCurves  # noqa: E402
from benchmarks.search_report import Judge, Score, pooled, score, summary  # noqa: E402
from benchmarks.search_studies import Outcome, study  # noqa: E402
from benchmarks.search_truth import Truth, read_truth, write_truth  # noqa: E402

TRUTH = Path(__file__).parent / "results" / "search-truth.json.gz"
#: A strategy gets curves and the seed of its random choices.
Strategy = Callable[[AbstractCurves, int], Outcome]


def strategies(fields: Mapping[str, Any]) -> dict[str, Strategy]:
    """Every strategy by name.

    Args:
        fields: of this project's studies, other than their defaults.

    Returns:
        Functions of curves and a seed.
    """
    return {
        "study": partial(study, fields=fields),
        **{f"tpe-{num_seeds}": partial(baselines.tpe, num_seeds=num_seeds) for num_seeds in (1, 2, 3, 5, 8)},
        "gp": baselines.gaussian_process,
        "grid": baselines.grid,
        "asha": baselines.asha,
    }


def main() -> None:
    options = parse()
    if options.truth:
        build(options)
    elif options.calibration:
        for name, scenario in SCENARIOS.items():
            found = calibrate(scenario, options.calibration, fields(options.set), seed=options.seed)
            write({"scenario": name, **found.to_json()}, options.out)
    else:
        compare(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", action="store_true", help="train the truth and keep it")
    parser.add_argument("--problem", default="", help="names separated by commas; all by default")
    parser.add_argument("--strategy", default="", help="names separated by commas; all by default")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the studies")
    parser.add_argument("--calibration", type=int, default=0, metavar="STUDIES")
    parser.add_argument("--table", type=Path, default=TRUTH, help="where the truth is kept")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    return parser.parse_args()


def fields(texts: Iterable[str]) -> dict[str, Any]:
    """Fields of a study from texts such as ``num_trials=12``; values are JSON."""
    pairs = (text.partition("=") for text in texts)
    return {name: json.loads(value) for name, _, value in pairs}


def write(row: Mapping[str, Any], out: Path | None) -> None:
    """Print a line, and keep it."""
    line = json.dumps(row)
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


def build(options: argparse.Namespace) -> None:
    """Train the truth of every problem; what is kept of others stays."""
    import torch

    from benchmarks.search_problems import PROBLEMS
    from benchmarks.search_truth import train_truth

    torch.set_num_threads(1)
    tables = read_truth(options.table)
    for name in options.problem.split(",") if options.problem else PROBLEMS:
        tables[name] = train_truth(PROBLEMS[name], machine=facts(), tell=partial(tell, name))
        write_truth(options.table, tables)


def tell(problem: str, line: str) -> None:
    print(f"{problem}: {line}", file=sys.stderr, flush=True)


def compare(options: argparse.Namespace) -> None:
    """Let every strategy answer on every problem, and judge the answers."""
    tables = read_truth(options.table)
    chosen = strategies(fields(options.set))
    names = options.strategy.split(",") if options.strategy else list(chosen)
    scores: list[Score] = []
    for problem in options.problem.split(",") if options.problem else tables:
        write({"problem": problem, "truth": Judge(tables[problem]).describe()}, options.out)
        for name in names:
            outcomes = repeat(tables[problem], chosen[name], options.repeats, options.seed)
            scores.append(score(problem, name, tables[problem], outcomes))
            write(scores[-1].to_json(), options.out)
    for name in names:
        write(pooled(scores, name).to_json(), options.out)
    if "study" in names:
        write(summary(scores, "study") | {"set": options.set}, options.out)


def repeat(truth: Truth, strategy: Strategy, count: int, first: int) -> list[Outcome]:
    """Answers under other seeds each time: of the strategy, and of the trainings it sees."""
    found = []
    for seed in range(first, first + count):
        order = np.random.default_rng(seed).permutation(truth.num_seeds).tolist()
        found.append(strategy(TableCurves(truth, order), seed))
    return found


if __name__ == "__main__":
    main()
