"""Hugging Face Trainer: a clip setting as a callback, one JSON line per evaluation.

``python examples/hf_trainer.py --clip global_norm:0.35`` trains a small Llama made from its configuration; nothing is
downloaded. The lines are what ``cliptune run --study ID -- python examples/hf_trainer.py --clip {setting} --seed
{seed}`` reads: the step, the objective (the evaluation loss), and the gradient norm before clipping, which is what
the Trainer logs as ``grad_norm``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from tuner.inline import Clipper
from tuner.integrations.transformers import ClipCallback

VOCABULARY, WINDOW = 64, 16


class Sequences(Dataset[dict[str, Tensor]]):
    """Counting up by a step that the first two tokens tell, the same for every training seed."""

    def __init__(self, count: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        start, stride = torch.randint(1, VOCABULARY, (2, count, 1), generator=generator)
        self._tokens = (start + stride * torch.arange(WINDOW)) % VOCABULARY

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


class JsonLines(TrainerCallback):
    """Prints what a reader of the standard output needs."""

    def __init__(self) -> None:
        self._grad_norm: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Keep the norm of the newest logged step."""
        del args, state, control, kwargs
        self._grad_norm = logs.get("grad_norm", self._grad_norm)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """One line per evaluation."""
        del args, control, kwargs
        line = {"step": state.global_step, "val_loss": metrics["eval_loss"], "grad_norm": self._grad_norm}
        print(json.dumps(line), flush=True)


def main() -> None:
    options = parse()
    set_seed(options.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            LlamaForCausalLM(config),
            TrainingArguments(
                output_dir=folder,
                max_steps=options.steps,
                per_device_train_batch_size=16,
                gradient_accumulation_steps=options.accumulate,
                learning_rate=options.learning_rate,
                eval_strategy="steps",
                eval_steps=options.steps // 4,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=options.seed,
            ),
            train_dataset=Sequences(1024, seed=0),
            eval_dataset=Sequences(128, seed=1),
            callbacks=[
                ClipCallback(Clipper.from_setting(options.clip, run_steps=options.steps)),
                JsonLines(),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", default="global_norm:0.35", help="clip setting, METHOD:THRESHOLD or none")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps, at least 4")
    parser.add_argument("--accumulate", type=int, default=2, help="batches per optimizer step")
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--quick", action="store_true", help="12 steps, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.steps = 12
    return options


if __name__ == "__main__":
    main()
