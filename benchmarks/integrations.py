"""What cliptune's ways into a training cost: `Clipper` against ``clip_grad_norm_``.

``python benchmarks/integrations.py clip`` clips the gradients of a model of 10 million parameters (a transformer's
shapes, 100 tensors) with PyTorch's function and with a `tuner.inline.Clipper`, in turns of 8 steps. A measurement is
256 steps, so that what the clipper does now and then is in the figure; on the CPU it counts the process's own CPU
seconds. The function is ``clip_grad_norm_``, for *value* ``clip_grad_value_``, for *global_norm_inf* the one with
``norm_type=inf``. One JSON line per setting:

- ``torch_seconds``, ``clipper_seconds``: medians per step;
- ``ratio``: the median of clipper / PyTorch over the pairs, with the quartiles; the goal is at most 1.05;
- ``waits``: operators per 1000 steps whose result the host would have to wait for; the goal is 0. On CUDA every
  implicit wait is an error as well (``torch.cuda.set_sync_debug_mode``).

A whole step (forward, backward, optimizer) is not timed: against it the ratio would be closer to 1. The round trips
over HTTP are in ``integrations_http.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import facts  # noqa: E402
from tuner.inline import Clipper  # noqa: E402

#: Steps per measurement: the steps that a clipper folds at once; and per turn within it.
FOLD, BLOCK = 256, 8
MAX_NORM = 0.35
SETTINGS = (
    "global_norm:0.35",
    "none",
    "value:0.001",
    "per_tensor_norm:0.35",
    "global_norm_inf:0.001",
    "zclip:2.5",
    "adagc:1.1",
    "agc:0.01",
)
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


#: What stands in PyTorch for a method; ``clip_grad_norm_`` for the methods that it does not have.
PYTORCH: Mapping[str, Callable[..., Any]] = {
    "value": torch.nn.utils.clip_grad_value_,
    "global_norm_inf": partial(torch.nn.utils.clip_grad_norm_, norm_type=inf),
}


class Waits(TorchDispatchMode):
    """Counts the operators whose result the host waits for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _WAITING
        return func(*args, **(kwargs or {}))


def ten_million(device: str) -> list[nn.Parameter]:
    """Parameters in the shapes of eight transformer blocks of width 320 and their embeddings, with gradients."""
    block = [
        (960, 320),
        (960,),
        (320, 320),
        (320,),
        (1280, 320),
        (1280,),
        (320, 1280),
        (320,),
        (320,),
        (320,),
    ]
    shapes = [shape for _ in range(8) for shape in (*block, (320,), (320,))] + [
        (420, 320),
        (256, 320),
        (320,),
        (320,),
    ]
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        each = nn.Parameter(torch.empty(shape, device=device))
        each.grad = torch.randn(shape, generator=generator).mul(1e-3).to(device)
        parameters.append(each)
    return parameters


def clip(options: argparse.Namespace) -> None:
    """The subcommand of the same name."""
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    parameters = ten_million(device)
    fold = 8 if options.quick else FOLD
    repeats = 2 if options.quick else options.repeats
    for setting in options.settings.split(","):
        measured = compare(setting, parameters, device=device, fold=fold, repeats=repeats)
        measured["waits"] = waits_of(setting, parameters, num_steps=fold, device=device)
        report(
            {
                "benchmark": "integrations clip",
                "setting": setting,
                "device": torch.cuda.get_device_name()
                if device == "cuda"
                else f"cpu, {options.threads} threads",
                "parameters": sum(each.numel() for each in parameters),
                "tensors": len(parameters),
                "steps": fold,
                "repeats": repeats,
                **measured,
            },
            options.out,
        )


def compare(
    setting: str, parameters: list[nn.Parameter], *, device: str, fold: int, repeats: int
) -> dict[str, Any]:
    """PyTorch's function and a clipper in turns; the order changes every time."""
    clipper = Clipper.from_setting(setting)
    theirs = partial(
        PYTORCH.get(clipper.setting.method, torch.nn.utils.clip_grad_norm_), parameters, MAX_NORM
    )

    def ours() -> Tensor:
        return clipper(parameters)

    pairs = []
    # The first round builds what stays, and is left out.
    for _ in range(1 + repeats):
        times = dict.fromkeys((theirs, ours), 0.0)
        for block in range(max(1, fold // BLOCK)):
            for step in (theirs, ours) if block % 2 else (ours, theirs):
                times[step] += seconds_of(step, min(fold, BLOCK), device) / fold
        pairs.append((times[theirs], times[ours]))
    del pairs[0]
    ratios = sorted(mine / other for other, mine in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "torch_seconds": statistics.median(other for other, _ in pairs),
        "clipper_seconds": statistics.median(mine for _, mine in pairs),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
    }


def seconds_of(step: Callable[[], Any], count: int, device: str) -> float:
    """Seconds of some steps: on a GPU until it is done, on the CPU of this process alone, whatever else runs."""
    if device == "cpu":
        started = time.process_time()
        for _ in range(count):
            step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def waits_of(setting: str, parameters: list[nn.Parameter], *, num_steps: int, device: str) -> float:
    """Operators per 1000 steps that the host waits for."""
    clipper = Clipper.from_setting(setting)
    clipper(parameters)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Waits() as waits:
            for _ in range(num_steps):
                clipper(parameters)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return 1000 * waits.count / num_steps


def report(result: dict[str, Any], out: Path | None) -> None:
    line = json.dumps(result | {"machine": facts()})
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{clip}")
    clipping = commands.add_parser("clip", help="Clipper against clip_grad_norm_")
    clipping.add_argument("--settings", default=",".join(SETTINGS), help="clip settings, separated by commas")
    clipping.add_argument("--repeats", type=int, default=15, help="pairs of measurements per setting")
    clipping.add_argument("--threads", type=int, default=1, help="CPU threads")
    clipping.add_argument("--cpu", action="store_true", help="stay on the CPU")
    clipping.add_argument("--quick", action="store_true", help="two short pairs, to see that it works")
    clipping.add_argument("--out", type=Path, help="a file that the lines are added to")
    clipping.set_defaults(run=clip)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
