"""What every rank runs for ``test_distributed.py``: ``torchrun ... ranks.py FOLDER`` writes ``FOLDER/RANK.json``.

All scenarios in one start, because starting the ranks takes longer than what they do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.integrations.attached import Attached
from tuner.integrations.distributed import RankZeroTrial, mean_over_ranks, on_rank_zero
from tuner.spec import ClipSetting
from tuner.user_loop.trial import FunctionTrial

NUM_STEPS = 6
BATCH = 8


class Service:
    """Where rank 0 reports to."""

    def __init__(self, *, prune_at: int | None = None, fail_at: int | None = None) -> None:
        self.reports: list[tuple[int, float]] = []
        self._prune_at, self._fail_at = prune_at, fail_at

    def on_report(self, step: int, value: float) -> str | None:
        if step == self._fail_at:
            raise ConnectionError("the service is gone")
        self.reports.append((step, value))
        return f"pruned at step {step}" if step == self._prune_at else None

    def trial(self, setting: str, reference_norm: float | None = None) -> FunctionTrial | None:
        """The trial on rank 0, None on the others."""
        return self.own_trial(setting, reference_norm) if os.environ["RANK"] == "0" else None

    def own_trial(self, setting: str, reference_norm: float | None = None) -> FunctionTrial:
        """A trial on every rank."""
        return FunctionTrial(
            setting=ClipSetting.parse(setting),
            seed=7,
            parameters={"width": 8},
            num_steps=NUM_STEPS,
            clipper=Clipper.from_setting(setting, reference_norm=reference_norm),
            on_clip=lambda num_steps: None,
            on_report=self.on_report,
        )


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """The whole batch of every step; a rank takes its part."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(2 * BATCH, 4, generator=generator) for _ in range(NUM_STEPS)]
    return [(each, 3 * each.sum(dim=1)) for each in inputs]


def new_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(trial: RankZeroTrial, *, clips: Callable[..., Tensor] | None = None) -> dict[str, Any]:
    """A data-parallel training; what this rank saw."""
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rank, norms, step = dist.get_rank(), [], 0
    ended: str | None = None
    try:
        for step, (inputs, targets) in enumerate(batches(trial.seed), 1):
            part = slice(rank * BATCH, (rank + 1) * BATCH)
            loss = nn.functional.mse_loss(model(inputs[part]).squeeze(1), targets[part])
            optimizer.zero_grad()
            loss.backward()
            norms.append(float((clips or trial.clip)(model.parameters(), loss=loss)))
            trial.clipper.step(optimizer)
            trial.report(step, mean_over_ranks(loss.detach()))
    except TrialPruned as pruned:
        ended = pruned.reason
    weights = torch.cat([each.detach().flatten() for each in model.parameters()])
    return {"norms": norms, "weights": weights.tolist(), "last_step": step, "ended": ended}


def whole_training() -> dict[str, Any]:
    service = Service()
    with RankZeroTrial(service.trial("global_norm:0.5")) as trial:
        told = {"setting": str(trial.setting), "seed": trial.seed, "num_steps": trial.num_steps}
        seen = train(trial)
    return told | seen | {"parameters": dict(trial.parameters), "reports": service.reports}


def pruned_training() -> dict[str, Any]:
    service = Service(prune_at=3)
    return train(RankZeroTrial(service.trial("global_norm:0.5"))) | {"reports": service.reports}


def pruned_in_a_context() -> dict[str, Any]:
    """Being pruned is no error behind the ``with`` block, on any rank."""
    with RankZeroTrial(Service(prune_at=1).trial("none")) as trial:
        trial.report(1, 0.5)
    return {"left": True}


def method_with_a_scale() -> dict[str, Any]:
    """Ranks whose clippers knew of different reference norms would drift apart."""
    trial = RankZeroTrial(Service().trial("quantile:0.5", reference_norm=2.5))
    return train(trial) | {"reference_norm": trial.clipper.reference_norm}


def skipping(clips: str) -> dict[str, Any]:
    """One rank's loss is an outlier in the last step, the other's is not."""
    trial = RankZeroTrial(Service().trial("skip_step:3"))
    attached = Attached(Clipper.from_setting("skip_step:3"))
    parameter = nn.Parameter(torch.zeros(1))
    skipped = []
    for step in range(80):
        parameter.grad = torch.ones(1)
        is_outlier = step == 79 and dist.get_rank() == 1
        loss = torch.tensor(1000.0 if is_outlier else 1.0 + 0.01 * (step % 2))
        if clips == "attached":
            attached.clip([parameter], loss=loss)
            skipped.append(parameter.grad is None)
        else:
            trial.clip([parameter], loss=loss)
            skipped.append(bool(trial.clipper.last.skipped))
    return {"skipped": [step for step, each in enumerate(skipped) if each]}


def failing_report() -> dict[str, Any]:
    service = Service(fail_at=2)
    trial = RankZeroTrial(service.trial("none"))
    trial.report(1, 0.5)
    return caught(lambda: trial.report(2, 0.25)) | {"reports": service.reports}


def interrupted_report() -> dict[str, Any]:
    """Not every failure is an `Exception`."""

    class Interrupted(Service):
        def on_report(self, step: int, value: float) -> str | None:
            raise KeyboardInterrupt

    trial = RankZeroTrial(Interrupted().trial("none"))
    return caught(lambda: trial.report(1, 0.5))


def unsendable_result() -> dict[str, Any]:
    """Rank 0's result is no JSON value: nobody waits for what can't be sent."""
    return caught(lambda: on_rank_zero(lambda: object()))


def asking() -> dict[str, Any]:
    calls: list[int] = []

    def ask(found: FunctionTrial | None) -> FunctionTrial | None:
        calls.append(dist.get_rank())
        return found

    def refuse() -> FunctionTrial:
        raise ConnectionError("the service is gone")

    none_left = RankZeroTrial.ask(lambda: ask(None))
    one = RankZeroTrial.ask(lambda: ask(Service().trial("value:0.25")))
    return {
        "none_left": none_left is None,
        "setting": None if one is None else str(one.setting),
        "calls": calls,
        "refused": caught(lambda: RankZeroTrial.ask(refuse)),
        "no_trial": caught(lambda: RankZeroTrial(None)),
    }


def attached_trials() -> dict[str, Any]:
    """A framework's callback on every rank, with one trial for all, and with one for each."""
    service = Service(prune_at=2)
    shared = Attached(RankZeroTrial(service.trial("none")))
    went_on = [shared.report(step, 0.5) for step in (1, 2, 3)]
    own = Attached(Service().own_trial("none"))
    refused = caught(lambda: own.report(1, 0.5))
    return {"went_on": went_on, "reports": len(service.reports), "refused": refused}


def caught(work: Callable[[], object]) -> dict[str, Any]:
    try:
        work()
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": None}


def means() -> dict[str, Any]:
    rank = dist.get_rank()
    return {
        "mean": mean_over_ranks(float(rank)),
        "weighted": mean_over_ranks(torch.tensor(float(rank)), weight=1.0 + 2 * rank),
        "nan": str(mean_over_ranks(float("nan") if rank else 1.0)),
    }


def late_group() -> dict[str, Any]:
    """A trial made before the process group: the first use is what all ranks do together."""
    trial = RankZeroTrial(Service().trial("global_norm:2"))
    dist.init_process_group("gloo")
    return {"setting": str(trial.setting)}


def main() -> None:
    torch.set_num_threads(1)
    found = {"late_group": late_group()}
    found |= {
        each.__name__: each()
        for each in (
            whole_training,
            pruned_training,
            pruned_in_a_context,
            method_with_a_scale,
            failing_report,
            interrupted_report,
            unsendable_result,
            asking,
            attached_trials,
            means,
        )
    }
    found |= {f"skipping_{clips}": skipping(clips) for clips in ("attached", "trial")}
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
