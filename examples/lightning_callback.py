"""Lightning: a clip setting as a callback, one JSON line per validation.

``python examples/lightning_callback.py --clip global_norm:0.35`` trains a small network. The lines are what
``cliptune run --study ID -- python examples/lightning_callback.py --clip {setting} --seed {seed}`` reads: the step, the
objective, and the gradient norm before clipping.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.inline import Clipper
from tuner.integrations.lightning import ClipCallback


class Regression(pl.LightningModule):
    """A small network on noisy targets; nothing in it knows of clipping."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        del batch_idx
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """What the callback reports is what is logged here."""
        del batch_idx
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD: where clipping matters most."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.model(inputs).squeeze(1), targets)


class JsonLines(pl.Callback):
    """Prints what a reader of the standard output needs."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line per validation."""
        del pl_module
        metrics = trainer.callback_metrics
        line = {"step": trainer.global_step, "val_loss": float(metrics["val_loss"])}
        if "pre_clip_norm" in metrics:
            line["grad_norm"] = float(metrics["pre_clip_norm"])
        print(json.dumps(line), flush=True)


def pairs(count: int, *, seed: int) -> TensorDataset:
    """Inputs, and targets with heavy-tailed noise, the same for every training seed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 16, generator=generator)
    noise = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).clamp(min=0.02)
    return TensorDataset(inputs, inputs[:, :4].sum(dim=1) + 0.1 * noise)


def main() -> None:
    options = parse()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Data this small is fastest without loader processes; the other is Lightning's own, about torch's pytree.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    pl.seed_everything(options.seed, verbose=False)
    callback = ClipCallback(Clipper.from_setting(options.clip, run_steps=options.steps))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        val_check_interval=options.steps // 4,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        callbacks=[callback, JsonLines()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        Regression(options.learning_rate),
        DataLoader(pairs(2048, seed=0), batch_size=32, shuffle=True),
        DataLoader(pairs(512, seed=1), batch_size=512),
    )


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
