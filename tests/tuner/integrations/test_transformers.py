"""The Hugging Face callback under the real Trainer, with a small Llama made from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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
from tuner.integrations.errors import TrainerSetupError
from tuner.integrations.transformers import ClipCallback

NUM_STEPS = 8


class Sequences(Dataset[dict[str, Tensor]]):
    def __init__(self, seed: int) -> None:
        self._tokens = torch.randint(0, 16, (64, 8), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


class Norms(TrainerCallback):
    """What the Trainer logs as ``grad_norm``."""

    def __init__(self) -> None:
        self.logged: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.logged.append(logs["grad_norm"])


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A Trainer that takes eight steps; the same weights and data each time."""

    def make(*callbacks: TrainerCallback, **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        set_seed(0)
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=8,
        )
        trainer = Trainer(
            LlamaForCausalLM(config),
            TrainingArguments(**defaults | options),
            train_dataset=Sequences(0),
            eval_dataset=Sequences(1),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


MakeTrainer = Callable[..., Trainer]
MakeTrial = Callable[..., Any]


def are_equal(first: Trainer, second: Trainer) -> bool:
    pairs = zip(model_of(first).parameters(), model_of(second).parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def model_of(trainer: Trainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model


# ---- clipping ----


@pytest.mark.parametrize("accumulate", [1, 2])
def test_is_max_grad_norm_bit_for_bit(make_trainer: MakeTrainer, accumulate: int) -> None:
    options = {"gradient_accumulation_steps": accumulate}
    clipper = Clipper.from_setting("global_norm:0.2")
    theirs = make_trainer(max_grad_norm=0.2, **options)
    ours = make_trainer(ClipCallback(clipper), **options)
    unclipped = make_trainer(max_grad_norm=0, **options)
    for trainer in (theirs, ours, unclipped):
        trainer.train()
    assert are_equal(ours, theirs)
    assert not are_equal(ours, unclipped)
    assert clipper.num_steps == NUM_STEPS, "once per optimizer step"
    assert clipper.record().clip_fraction == 1


def test_off_is_max_grad_norm_0_bit_for_bit(make_trainer: MakeTrainer) -> None:
    """Without the callback the Trainer would clip at 1.0."""
    clipper = Clipper.from_setting("none")
    theirs, ours = make_trainer(max_grad_norm=0), make_trainer(ClipCallback(clipper))
    for trainer in (theirs, ours):
        trainer.train()
    assert are_equal(ours, theirs)
    assert len(clipper.drain_norms()) == NUM_STEPS


def test_logged_grad_norm_is_the_norm_before_clipping(make_trainer: MakeTrainer) -> None:
    clipper, norms = Clipper.from_setting("global_norm:0.01"), Norms()
    make_trainer(ClipCallback(clipper), norms).train()
    assert norms.logged == clipper.drain_norms()
    assert min(norms.logged) > 0.01


def test_other_methods_clip_too(make_trainer: MakeTrainer) -> None:
    clipper = Clipper.from_setting("value:0.001")
    plain, ours = make_trainer(max_grad_norm=0), make_trainer(ClipCallback(clipper))
    for trainer in (plain, ours):
        trainer.train()
    assert not are_equal(plain, ours)
    assert clipper.record().clip_fraction == 1


def test_skipped_steps_change_nothing(make_trainer: MakeTrainer) -> None:
    """A method that skips every step, by a threshold that every norm exceeds once it has seen two."""

    class Growing(TrainerCallback):
        """Makes each step's gradient ten times as large as the one before."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for each in kwargs["model"].parameters():
                each.grad.mul_(10.0**state.global_step)

    class Weights(TrainerCallback):
        def __init__(self) -> None:
            self.history: list[Tensor] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.history.append(torch.cat([each.detach().flatten() for each in kwargs["model"].parameters()]))

    clipper, seen = Clipper.from_setting("skip_step:1", window=4), Weights()
    make_trainer(Growing(), ClipCallback(clipper), seen, lr_scheduler_type="constant").train()
    assert bool(clipper.last.skipped)
    assert torch.equal(seen.history[-1], seen.history[-2])
    assert not torch.equal(seen.history[1], seen.history[0])


def test_trainer_has_its_own_clipping_back(make_trainer: MakeTrainer) -> None:
    during: list[float] = []

    class Reads(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            during.append(args.max_grad_norm)

    trainer = make_trainer(ClipCallback(Clipper.from_setting("none")), Reads(), max_grad_norm=0.7)
    trainer.train()
    assert set(during) == {0.0}
    assert trainer.args.max_grad_norm == 0.7


def test_training_that_raised_does_not_take_the_trainers_clipping_along(make_trainer: MakeTrainer) -> None:
    class Breaks(TrainerCallback):
        is_broken = True

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.is_broken:
                raise ConnectionError("no data")

    breaks = Breaks()
    trainer = make_trainer(ClipCallback(Clipper.from_setting("none")), breaks, max_grad_norm=0.7)
    with pytest.raises(ConnectionError, match="no data"):
        trainer.train()
    breaks.is_broken = False
    trainer.train()
    assert trainer.args.max_grad_norm == 0.7


# ---- reporting and pruning ----


def test_reports_every_evaluation(make_trainer: MakeTrainer, make_trial: MakeTrial) -> None:
    trial, told = make_trial()
    callback = ClipCallback(trial)
    trainer = make_trainer(callback, eval_strategy="steps", eval_steps=4)
    before = trainer.evaluate()
    trainer.train()
    # The final evaluation of a script tells nothing new.
    after = trainer.evaluate()
    assert [step for step, _ in told.reports] == [0, 4, 8]
    assert (told.reports[0][1], told.reports[-1][1]) == (before["eval_loss"], after["eval_loss"])
    assert (callback.pruned, callback.reason) == (False, None)


def test_pruned_trial_ends_training_without_an_exception(
    make_trainer: MakeTrainer, make_trial: MakeTrial
) -> None:
    trial, told = make_trial(prune_at=4)
    callback = ClipCallback(trial)
    trainer = make_trainer(callback, eval_strategy="steps", eval_steps=2)
    assert trainer.train().global_step == 4
    assert [step for step, _ in told.reports] == [2, 4]
    assert (callback.pruned, callback.reason) == (True, "pruned at step 4")


def test_trial_pruned_before_training_hardly_trains(make_trainer: MakeTrainer, make_trial: MakeTrial) -> None:
    """The Trainer looks at the end of a step."""
    trial, told = make_trial(prune_at=0)
    trainer = make_trainer(ClipCallback(trial))
    trainer.evaluate()
    assert trainer.train().global_step <= 1
    assert len(told.reports) == 1


def test_trial_that_ends_while_clipping_ends_training_too(
    make_trainer: MakeTrainer, make_trial: MakeTrial
) -> None:
    trial, _ = make_trial(stop_after_clips=3)
    callback = ClipCallback(trial)
    assert make_trainer(callback).train().global_step == 3
    assert callback.reason == "measured enough"


def test_nan_is_reported(make_trainer: MakeTrainer, make_trial: MakeTrial) -> None:
    trial, told = make_trial()
    trainer = make_trainer(ClipCallback(trial))
    with torch.no_grad():
        next(model_of(trainer).parameters()).fill_(nan)
    trainer.evaluate()
    assert [(step, value != value) for step, value in told.reports] == [(0, True)]


def test_one_of_several_data_sets_is_the_objective(make_trainer: MakeTrainer, make_trial: MakeTrial) -> None:
    trial, told = make_trial()
    trainer = make_trainer(
        ClipCallback(trial, metric="eval_second_loss"), eval_strategy="steps", eval_steps=NUM_STEPS
    )
    trainer.eval_dataset = {"first": Sequences(1), "second": Sequences(2)}
    trainer.train()
    assert [step for step, _ in told.reports] == [NUM_STEPS]


# ---- what is refused ----


def test_metric_that_no_evaluation_has_is_told_with_those_there_are(
    make_trainer: MakeTrainer, make_trial: MakeTrial
) -> None:
    trial, _ = make_trial()
    trainer = make_trainer(
        ClipCallback(trial, metric="eval_error"), eval_strategy="steps", eval_steps=4, max_grad_norm=0.7
    )
    with pytest.raises(TrainerSetupError, match=r"metric='eval_error' is in no evaluation.*eval_loss"):
        trainer.train()
    assert trainer.args.max_grad_norm == 0.7


def test_deepspeed_is_refused(make_trainer: MakeTrainer) -> None:
    callback = ClipCallback(Clipper.from_setting("none"))
    trainer = make_trainer(callback)
    trainer.args.deepspeed = {"gradient_clipping": 1.0}
    with pytest.raises(TrainerSetupError, match=r"deepspeed=.*clips by itself: .*gradient_clipping"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
