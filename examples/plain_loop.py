"""A plain PyTorch loop with a clip setting: gradient accumulation, fp16, a monitor; one JSON line per evaluation.

``python examples/plain_loop.py --clip global_norm:0.35`` trains a small network; ``--accumulate 4`` adds up the
gradients of four batches per step, ``--fp16`` trains under a ``GradScaler``. ``--workload NAME`` asks the service for
the setting, with ``--clip`` for the time that there is none. The lines are what ``cliptune run --study ID -- python
examples/plain_loop.py --clip {setting} --seed {seed}`` reads.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from tuner import Clipper
from tuner.monitors import open_monitor

FEATURES = 16


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs, and targets with heavy-tailed noise."""
    inputs = torch.randn(count, FEATURES, generator=generator)
    noise = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).clamp(min=0.02)
    return inputs, inputs[:, :4].sum(dim=1) + 0.1 * noise


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    torch.manual_seed(options.seed)
    data = torch.Generator().manual_seed(options.seed)
    held_out = [each.to(device) for each in batch(512, torch.Generator().manual_seed(1000))]
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)

    monitor = open_monitor(options.monitor) if options.monitor else None
    if options.workload:
        clipper = Clipper.recommended(
            workload=options.workload, fallback=options.clip, run_steps=options.steps, monitor=monitor
        )
    else:
        clipper = Clipper.from_setting(options.clip, run_steps=options.steps, monitor=monitor)
    rate = options.learning_rate * clipper.setting.learning_rate_scale
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    # Without fp16 the scaler does nothing, and the loop is the usual one.
    scaler = torch.amp.GradScaler(device, enabled=options.fp16)

    for step in range(1, options.steps + 1):
        optimizer.zero_grad()
        step_loss = torch.zeros((), device=device)
        for _ in range(options.accumulate):
            inputs, targets = (each.to(device) for each in batch(32, data))
            with torch.autocast(device, dtype=torch.float16, enabled=options.fp16):
                loss = nn.functional.mse_loss(model(inputs).squeeze(1).float(), targets) / options.accumulate
            scaler.scale(loss).backward()
            step_loss += loss.detach()
        # Once per step: after the last batch's gradient, in the gradient's own unit, before the optimizer.
        scaler.unscale_(optimizer)
        norm = clipper(model.parameters(), loss=step_loss)
        if not clipper.can_skip or not clipper.last.skipped:
            scaler.step(optimizer)
        scaler.update()

        if step % (options.steps // 4) == 0:
            with torch.no_grad():
                value = nn.functional.mse_loss(model(held_out[0]).squeeze(1), held_out[1])
            print(json.dumps({"step": step, "val_loss": float(value), "grad_norm": float(norm)}), flush=True)

    record = clipper.record()
    told = {"setting": str(clipper.setting), "clip_fraction": record.clip_fraction}
    print(json.dumps(told | {"overflows": record.num_non_finite, "skipped": record.num_skipped}), flush=True)
    if monitor is not None:
        monitor.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", default="global_norm:0.35", help="clip setting, METHOD:THRESHOLD or none")
    parser.add_argument("--workload", default="", help="ask the service what it recommends for this workload")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps, at least 4")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--fp16", action="store_true", help="half precision under a GradScaler")
    parser.add_argument("--monitor", default="", help="tensorboard:FOLDER, wandb:PROJECT or mlflow:ADDRESS")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--quick", action="store_true", help="40 steps on the CPU, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.cpu = 40, True
    return options


if __name__ == "__main__":
    main()
