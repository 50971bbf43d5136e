"""The first checks of the lane engine's design: which way of batching is fast, and which equalities are exact.

``python benchmarks/vmap_variants.py`` prints JSON lines, on the CPU and with ``--device cuda`` there:

- ``gradients``: forward and backward of a 3-layer perceptron in L lanes, by vmap outside of autograd (A), by
  ``vmap(grad)`` (B), written by hand with baddbmm, and by the recorded program that the engine runs (A, once);
- ``convolution``: a lane-wise convolution as one grouped convolution (what vmap makes of it), as a loop over lanes, and
  as unfold and one batched product; forward and backward;
- ``layout``: how parameters hang on the lane matrix: our strided leaves and one cat, leaves of their own, slices of
  one leaf;
- ``pairing``: correlation over seeds of the final losses of two nearby thresholds, with and without common seeds;
- ``equality``: whether a lane has the same bits for every number of lanes, whether thresholds that were never exceeded
  are *off* bit for bit, and whether a lane leaves *off* exactly at its first clipped step.

Times are medians of rounds in turns, in milliseconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.func import functional_call, grad, stack_module_state, vmap  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.lane_cases import CASES  # noqa: E402
from benchmarks.lane_contestants import wait  # noqa: E402
from benchmarks.machine import report  # noqa: E402
from tuner.lanes import row_of, trainable  # noqa: E402
from tuner.spec import ClipSetting  # noqa: E402
from tuner.training.batched import BatchedEngine  # noqa: E402
from tuner.training.cohort import Cohort, CohortTrial  # noqa: E402
from tuner.training.engine import LaneId  # noqa: E402
from tuner.training.initial import initial_model  # noqa: E402
from tuner.training.lane_batch import LaneBatch  # noqa: E402
from tuner.training.lane_program import LanePrograms  # noqa: E402
from tuner.training.streams import DataStreams, SeedStreams  # noqa: E402

Contestants = dict[str, Callable[[], object]]

#: in channels, out channels, side, batch.
CONVOLUTIONS = ((8, 16, 4, 32), (32, 64, 26, 64))


def main() -> None:
    parts = {
        "gradients": gradients,
        "convolution": convolution,
        "layout": layout,
        "pairing": pairing,
        "equality": equality,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(parts), help="names separated by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny counts, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.parts.split(","):
        for row in parts[name](options):
            report({"benchmark": "vmap_variants", "part": name, "device": options.device, **row})


def milliseconds(contestants: Contestants, options: argparse.Namespace) -> dict[str, float]:
    """Median time of each, in turns; each round takes at least 20 ms."""
    rounds = 1 if options.quick else options.rounds
    counts: dict[str, int] = {}
    for name, each in contestants.items():
        each()
        took = clocked(each, 1, options.device)
        counts[name] = 1 if options.quick else max(1, math.ceil(0.02 / took))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, each in contestants.items():
            found[name].append(1000 * clocked(each, counts[name], options.device) / counts[name])
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def clocked(function: Callable[[], object], count: int, device: str) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        function()
    wait(device)
    return time.perf_counter() - started


# --- gradients ---


def gradients(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for num_lanes in (1, 4) if options.quick else (1, 4, 16, 64, 256):
        found = milliseconds(gradient_variants(num_lanes, torch.device(options.device)), options)
        yield {"lanes": num_lanes, "threads": options.threads, "milliseconds": found}


def gradient_variants(num_lanes: int, device: torch.device) -> Contestants:
    workload = CASES["wide-mlp"].make()
    workload.device = device
    models = [workload.model().to(device) for _ in range(num_lanes)]
    model = models[0]
    batch = workload.train_batch(0, torch.Generator().manual_seed(0))
    stacked, _ = stack_module_state(models)
    leaves = {name: each.detach().requires_grad_() for name, each in stacked.items()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, parameters, (batch[0],))
        return functional.cross_entropy(logits, batch[1])

    def outside() -> object:
        return torch.autograd.grad(vmap(loss)(leaves).sum(), list(leaves.values()))

    def by_hand() -> object:
        hidden = batch[0].expand(num_lanes, *batch[0].shape)
        for layer in ("0", "2", "4"):
            bias, weight = leaves[f"{layer}.bias"].unsqueeze(1), leaves[f"{layer}.weight"]
            hidden = torch.baddbmm(bias, hidden, weight.mT)
            hidden = hidden.relu() if layer != "4" else hidden
        losses = functional.cross_entropy(hidden.flatten(0, 1), batch[1].repeat(num_lanes), reduction="sum")
        return torch.autograd.grad(losses / len(batch[1]), list(leaves.values()))

    programs, data = LanePrograms(workload, [model], precision="fp32"), DataStreams(workload, (0,))
    weights = torch.stack([row_of(trainable(each)) for each in models])
    streams, part = SeedStreams((0,), "training", device), data.step(0)[0]
    detached = {name: each.detach() for name, each in leaves.items()}
    return {
        "A": outside,
        "B": lambda: vmap(grad(loss))(detached),
        "baddbmm": by_hand,
        "recorded": lambda: programs.losses_and_gradients(weights, {}, part, streams, None),
    }


# --- convolution ---


def convolution(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    is_cuda = torch.device(options.device).type == "cuda"
    for shape in CONVOLUTIONS:
        for num_lanes in (1, 2) if options.quick else (1, 4, 16, *((64,) if is_cuda else ())):
            for dtype in (torch.float32, torch.bfloat16) if is_cuda else (torch.float32,):
                found = milliseconds(conv_variants(shape, num_lanes, options.device, dtype), options)
                sizes = dict(zip(("in", "out", "side", "batch"), shape, strict=True))
                yield {
                    **sizes,
                    "lanes": num_lanes,
                    "threads": options.threads,
                    "dtype": str(dtype).removeprefix("torch."),
                    "milliseconds": found,
                }


def conv_variants(
    shape: tuple[int, int, int, int], num_lanes: int, device: str, dtype: torch.dtype
) -> Contestants:
    num_in, num_out, side, batch = shape
    options: dict[str, Any] = {"device": device, "dtype": dtype, "requires_grad": True}
    images = torch.randn(num_lanes, batch, num_in, side, side, **options)
    weight = torch.randn(num_lanes, num_out, num_in, 3, 3, **options)
    upstream = torch.randn(num_lanes, batch, num_out, side, side, device=device, dtype=dtype)

    def grouped() -> Tensor:
        lanes_as_groups = images.transpose(0, 1).flatten(1, 2)
        rows = functional.conv2d(lanes_as_groups, weight.flatten(0, 1), padding=1, groups=num_lanes)
        return rows.unflatten(1, (num_lanes, num_out)).transpose(0, 1)

    def looped() -> Tensor:
        return torch.stack(
            [functional.conv2d(one, own, padding=1) for one, own in zip(images, weight, strict=True)]
        )

    def unfolded() -> Tensor:
        columns = functional.unfold(images.flatten(0, 1), 3, padding=1).unflatten(0, (num_lanes, batch))
        return (weight.flatten(2).unsqueeze(1) @ columns).unflatten(3, (side, side))

    return {
        function.__name__: lambda function=function: torch.autograd.grad(
            function(), (images, weight), upstream
        )
        for function in (grouped, looped, unfolded)
    }


# --- layout ---


def layout(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    num_lanes, num_tensors, size = 16, 40, 4096
    matrix = torch.randn(num_lanes, num_tensors * size, device=options.device)
    segments = [slice(size * n, size * (n + 1)) for n in range(num_tensors)]
    leaf = matrix.clone().requires_grad_()
    own = [matrix[:, each].clone().requires_grad_() for each in segments]

    def total(leaves: Sequence[Tensor]) -> Tensor:
        return torch.stack([(each * each).sum() for each in leaves]).sum()

    def strided_leaves() -> Tensor:
        views = [matrix[:, each].detach().requires_grad_() for each in segments]
        return torch.cat(torch.autograd.grad(total(views), views), dim=1)

    found = milliseconds(
        {
            "strided leaves, cat": strided_leaves,
            "own leaves": lambda: torch.autograd.grad(total(own), own),
            "own leaves, cat": lambda: torch.cat(torch.autograd.grad(total(own), own), dim=1),
            "slices of one leaf": lambda: torch.autograd.grad(
                total([leaf[:, each] for each in segments]), leaf
            ),
            "split of one leaf": lambda: torch.autograd.grad(total(leaf.split(size, 1)), leaf),
        },
        options,
    )
    yield {"lanes": num_lanes, "tensors": num_tensors, "threads": options.threads, "milliseconds": found}


# --- pairing ---


def pairing(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    num_seeds, num_steps = (3, 5) if options.quick else (24, 300)
    seeds = tuple(range(num_seeds))
    for case, low in (("digits-mlp", 0.5), ("charlm-rnn", 0.2)):
        thresholds = (low, 1.25 * low)
        cohort = Cohort(
            workload=case,
            parameters={},
            trials=tuple(
                CohortTrial(id=str(each), setting=ClipSetting(method="global_norm", threshold=each))
                for each in thresholds
            ),
            seeds=seeds,
            rung_steps=(num_steps,),
            divergence_factor=math.inf,
        )
        engine = BatchedEngine(cohort, CASES[case].make(), device=options.device)
        lanes = [LaneId(str(each), seed) for each in thresholds for seed in seeds]
        for _ in engine.advance(lanes, num_steps):
            pass
        values = [each.loss for each in engine.evaluate(lanes).values()]
        first, second = torch.tensor(values, dtype=torch.float64).view(2, num_seeds)
        shifted = [correlation(first, second.roll(by)) for by in range(1, num_seeds)]
        yield {
            "case": case,
            "thresholds": thresholds,
            "seeds": num_seeds,
            "steps": num_steps,
            "rho_paired": round(correlation(first, second), 4),
            "rho_unpaired": round(statistics.mean(shifted), 4),
        }


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


# --- equality ---


def equality(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    num_steps = 5 if options.quick else 100
    for case in ("wide-mlp", "small-cnn"):
        # A threshold above the largest norm of *off* is on the plateau, one below leaves *off* at some step.
        norms = histories(case, (None,), num_steps, options.device).norms
        inside = torch.quantile(norms, torch.linspace(0.99, 0.01, 14, device=norms.device)).tolist()
        thresholds = (None, 2 * float(norms.max()), *inside)
        runs = {n: histories(case, thresholds[:n], num_steps, options.device) for n in (1, 2, 5, 16)}
        largest = runs[16]
        left = first_step((largest.weights[:, 2:] != largest.weights[:, :1]).any(2))
        yield {
            "case": case,
            "steps": num_steps,
            "threads": options.threads,
            "off_equal_to_one_lane": {n: run.off_equals(runs[1]) for n, run in runs.items()},
            "plateau_equal": {n: run.is_equal(0, 1) for n, run in runs.items() if n > 1},
            "prefix_ends_at_first_clipped_step": torch.equal(left, first_step(largest.clipped[:, 2:])),
            "first_clipped_steps": left.tolist(),
        }


def first_step(happened: Tensor) -> Tensor:
    """Where each column of (N, L) is first True; -1 if nowhere."""
    return happened.to(torch.uint8).argmax(0).where(happened.any(0), -1)


class History:
    """Weights after each step (N, L, P), norms (N, L), clipped or not (N, L)."""

    def __init__(self, weights: list[Tensor], norms: list[Tensor], clipped: list[Tensor]) -> None:
        self.weights = torch.stack(weights)
        self.norms = torch.stack(norms)
        self.clipped = torch.stack(clipped)

    def is_equal(self, one: int, other: int) -> bool:
        """Whether two lanes have the same bits after every step."""
        return torch.equal(self.weights[:, one], self.weights[:, other])

    def off_equals(self, other: History) -> bool:
        """Whether lane 0 has the bits of the other's lane 0 after every step."""
        return torch.equal(self.weights[:, 0], other.weights[:, 0])


def histories(case: str, thresholds: Sequence[float | None], num_steps: int, device: str) -> History:
    """Train one seed under some thresholds, side by side."""
    workload = CASES[case].make()
    workload.device = torch.device(device)
    model = initial_model(workload, 0, workload.device)
    programs = LanePrograms(workload, [model], precision="fp32")
    limits = torch.tensor([math.inf if each is None else each for each in thresholds], device=device)
    settings = [
        ClipSetting(method="none") if each is None else ClipSetting(method="global_norm", threshold=each)
        for each in thresholds
    ]
    row = row_of(trainable(model))
    batch = LaneBatch(
        settings,
        programs.layout,
        row.repeat(len(thresholds), 1),
        optimizer=workload.optimizer(),
        num_steps=num_steps,
    )
    data, streams = DataStreams(workload, (0,)), SeedStreams((0,), "training", workload.device)
    weights, norms, clipped = [], [], []
    for step in range(num_steps):
        part = data.step(step)[0].to(workload.device)
        losses, grads = programs.losses_and_gradients(batch.weights, {}, part, streams, None)
        norms.append(torch.linalg.vector_norm(grads, dim=1))
        clipped.append(norms[-1] + 1e-6 > limits)
        batch.update(losses, grads)
        if batch.is_full:
            batch.flush()
        weights.append(batch.weights.clone())
    return History(weights, norms, clipped)


if __name__ == "__main__":
    main()
