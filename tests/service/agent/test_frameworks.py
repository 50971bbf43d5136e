"""Training scripts of real frameworks under `cliptune run`, read through what their own loggers write."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warm import Warm, warm_process

from service.lanes import LaneStatus

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "any-process.md"

MODEL = """
import argparse
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--max-grad-norm", type=float)
parser.add_argument("--seed", type=int)
parser.add_argument("--output")
options = parser.parse_args()
inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
"""

TRANSFORMERS = """
from transformers import Trainer, TrainingArguments

class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, labels=None):
        logits = self.layer(x)[:, 0]
        return {"loss": ((logits - labels) ** 2).mean(), "logits": logits}

rows = [{"x": row, "labels": row.sum()} for row in inputs]
arguments = TrainingArguments(
    output_dir=options.output, max_steps=20, seed=options.seed, max_grad_norm=options.max_grad_norm, logging_steps=1,
    eval_strategy="steps", eval_steps=5, save_strategy="no", report_to="tensorboard", use_cpu=True, disable_tqdm=True,
)
Trainer(model=Regression(), args=arguments, train_dataset=rows, eval_dataset=rows).train()
"""

LIGHTNING = """
import lightning
from lightning.pytorch.loggers import TensorBoardLogger

class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, index):
        return ((self.layer(batch[0])[:, 0] - batch[1]) ** 2).mean()

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def on_before_optimizer_step(self, optimizer):
        self.log("grad_norm", nn.utils.get_total_norm([each.grad for each in self.parameters()]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

lightning.seed_everything(options.seed)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, inputs.sum(1)), 8)
trainer = lightning.Trainer(
    max_steps=20, gradient_clip_val=options.max_grad_norm, logger=TensorBoardLogger(options.output),
    log_every_n_steps=1, val_check_interval=4, enable_checkpointing=False, enable_progress_bar=False,
    accelerator="cpu",
)
trainer.fit(Regression(), data, data)
"""


@pytest.fixture(scope="module")
def frameworks() -> Iterator[Warm]:
    """A framework is imported once; each training is a process of its own."""
    with warm_process() as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "objective", "norm", "threshold"),
    [
        (TRANSFORMERS, "eval/loss", "train/grad_norm", "global_norm:0.01"),
        # Zero is these frameworks' spelling of off; the norm is that before clipping either way.
        (TRANSFORMERS, "eval/loss", "train/grad_norm", "none"),
        (LIGHTNING, "val_loss", "grad_norm", "global_norm:0.01"),
        (LIGHTNING, "val_loss", "grad_norm", "none"),
    ],
    ids=["transformers", "transformers off", "lightning", "lightning off"],
)
def test_event_files_of_a_framework(
    external: Any, frameworks: Warm, tmp_path: Path, script: str, objective: str, norm: str, threshold: str
) -> None:
    (trial_id,) = external.put_up(threshold)
    file = tmp_path / "train.py"
    file.write_text(MODEL + script)
    keys = ("--objective-key", objective, "--norm-key", norm, "--metrics", "tensorboard:{output}")
    imported = "transformers.trainer" if script == TRANSFORMERS else "lightning"
    command = frameworks.command(file, modules=[imported])
    options = ("--max-grad-norm={threshold}", "--seed={seed}", "--output={output}")
    done = external.run("--trials", "1", *keys, "--", *command, *options)
    assert done.returncode == 0, done.stderr
    lane = external.lane(trial_id)
    assert lane.state is LaneStatus.COMPLETE
    assert lane.value is not None and 0 < lane.value < 10
    assert len(lane.norms) == 20
    assert min(lane.norms) > 0.01, "norms are those before clipping"


@pytest.mark.slow
def test_script_of_the_page(external: Any, tmp_path: Path) -> None:
    (trial_id,) = external.put_up("global_norm:0.5")
    code = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    file = tmp_path / "train.py"
    file.write_text(code[1])
    arguments = ("--max-grad-norm", "{threshold}", "--seed", "{seed}", "--steps", "{num_steps}")
    done = external.run("--trials", "1", "--off", "inf", "--", sys.executable, str(file), *arguments)
    assert done.returncode == 0, done.stderr
    lane = external.lane(trial_id)
    assert set(lane.reports) >= {0, 40, 100}
    assert len(lane.norms) == 100
    assert max(lane.norms) > 0.5
    assert lane.reports[100] is not None and lane.reports[0] is not None
    assert lane.reports[100] < lane.reports[0] / 2
