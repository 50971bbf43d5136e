"""Accelerate: a clip setting in a loop of your own, with gradient accumulation; one JSON line per evaluation.

``python examples/accelerate_loop.py --clip global_norm:0.35`` trains a small network. It also runs under
``accelerate launch``. The lines are what ``cliptune run --study ID -- python examples/accelerate_loop.py --clip
{setting} --seed {seed}`` reads: the step, the objective, and the gradient norm before clipping.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.inline import Clipper
from tuner.integrations.accelerate import clip_after_unscale


def pairs(count: int, *, seed: int) -> TensorDataset:
    """Inputs, and targets with heavy-tailed noise, the same for every training seed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 16, generator=generator)
    noise = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).clamp(min=0.02)
    return TensorDataset(inputs, inputs[:, :4].sum(dim=1) + 0.1 * noise)


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[list[Tensor]]:
    """Epoch after epoch."""
    while True:
        yield from loader


def main() -> None:
    options = parse()
    set_seed(options.seed)
    accelerator = Accelerator(cpu=options.cpu, gradient_accumulation_steps=options.accumulate)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate)
    loader = DataLoader(pairs(2048, seed=0), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    held_out = [each.to(accelerator.device) for each in pairs(512, seed=1).tensors]
    clipper = Clipper.from_setting(options.clip, run_steps=options.steps)

    for inputs, targets in endless(loader):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs).squeeze(1), targets)
            accelerator.backward(loss)
            norm = clip_after_unscale(accelerator, clipper, model, loss=loss)
            optimizer.step()
            optimizer.zero_grad()
        if norm is None:
            continue  # between the batches of one step
        step = clipper.num_steps
        if step % (options.steps // 4) == 0 and accelerator.is_main_process:
            with torch.no_grad():
                value = nn.functional.mse_loss(model(held_out[0]).squeeze(1), held_out[1])
            line = {"step": step, "val_loss": float(value), "grad_norm": float(norm)}
            print(json.dumps(line), flush=True)
        if step == options.steps:
            break
    accelerator.end_training()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", default="global_norm:0.35", help="clip setting, METHOD:THRESHOLD or none")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps, at least 4")
    parser.add_argument("--accumulate", type=int, default=2, help="batches per optimizer step")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--quick", action="store_true", help="40 steps on the CPU, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.cpu = 40, True
    return options


if __name__ == "__main__":
    main()
