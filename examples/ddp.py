"""Plain PyTorch DDP: every rank clips by itself, all with the same norm; rank 0 prints one JSON line per evaluation.

``torchrun --nproc-per-node 2 examples/ddp.py --clip global_norm:0.35`` trains a small network on two CPU processes,
plain ``python examples/ddp.py`` on one. The lines are what ``cliptune run --study ID -- torchrun --nproc-per-node 2
examples/ddp.py --clip {setting} --seed {seed}`` reads: the step, the objective over the held-out data of all ranks, and
the gradient norm before clipping.
"""

from __future__ import annotations

import argparse
import json
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tuner.inline import Clipper
from tuner.integrations.distributed import agreed_loss, is_rank_zero, mean_over_ranks, num_ranks


def pairs(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs, and targets with heavy-tailed noise, the same for every training seed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 16, generator=generator)
    noise = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).clamp(min=0.02)
    return inputs, inputs[:, :4].sum(dim=1) + 0.1 * noise


def train(options: argparse.Namespace) -> None:
    """The same code on every rank."""
    rank = dist.get_rank() if num_ranks() > 1 else 0
    torch.manual_seed(options.seed)
    model: nn.Module = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    if num_ranks() > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate)
    clipper = Clipper.from_setting(options.clip, run_steps=options.steps)
    # Every rank draws batches of its own, and evaluates its own part of the held-out data.
    draws = torch.Generator().manual_seed(1000 * options.seed + rank)
    inputs, targets = pairs(2048, seed=0)
    held_out = [each[rank :: num_ranks()] for each in pairs(512, seed=1)]

    for step in range(1, options.steps + 1):
        chosen = torch.randint(0, len(inputs), (32,), generator=draws)
        loss = nn.functional.mse_loss(model(inputs[chosen]).squeeze(1), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        # backward() has averaged the gradients over the ranks: the whole gradient is here.
        norm = clipper(model.parameters(), loss=agreed_loss(clipper, loss))
        clipper.step(optimizer)
        if step % (options.steps // 4) == 0:
            with torch.no_grad():
                part = nn.functional.mse_loss(model(held_out[0]).squeeze(1), held_out[1])
            value = mean_over_ranks(part, weight=len(held_out[0]))
            if is_rank_zero():
                line = {"step": step, "val_loss": value, "grad_norm": float(norm)}
                print(json.dumps(line), flush=True)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    # torchrun tells every process its rank by this and a few more variables, which PyTorch reads.
    is_launched = "RANK" in os.environ
    if is_launched:
        dist.init_process_group("gloo")
    try:
        train(options)
    finally:
        if is_launched:
            dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", default="global_norm:0.35", help="clip setting, METHOD:THRESHOLD or none")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps, at least 4")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--quick", action="store_true", help="40 steps, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.steps = 40
    return options


if __name__ == "__main__":
    main()
