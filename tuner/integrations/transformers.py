"""Clip, report and prune under the Hugging Face Trainer.

``max_grad_norm`` is the Trainer's own clipping, 1.0 unless it is set. The callback sets it to 0 while the Trainer
trains and clips in ``on_pre_optimizer_step`` instead: once per optimizer step, on the accumulated gradient, after
fp16 gradients were unscaled (the Trainer does that to measure the ``grad_norm`` that it logs, which stays the norm
before clipping). Public events only, and the same way for every method.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuner.inline import Clipper
from tuner.integrations.attached import Attached, Trial
from tuner.integrations.errors import TrainerSetupError


class ClipCallback(TrainerCallback):
    """Clips with a clipper or a trial in place of ``max_grad_norm``.

    With a trial, every evaluation's ``metric`` is reported; a pruned trial ends ``train`` after that evaluation,
    without an exception.

    Args:
        clipper_or_trial: what to clip with, and with a trial whom to report to.
        metric: the objective, as the Trainer's evaluation names it; smaller is better.

    Attributes:
        metric: see above.

    Example:
        >>> callback = ClipCallback(Clipper.from_setting("global_norm:0.5"))
        >>> callback.pruned, callback.clipper.setting.threshold
        (False, 0.5)
    """

    def __init__(self, clipper_or_trial: Clipper | Trial, *, metric: str = "eval_loss") -> None:
        self.metric = metric
        self._attached = Attached(clipper_or_trial)
        self._own: tuple[TrainingArguments, float] | None = None
        self._other_metrics: set[str] = set()

    @property
    def clipper(self) -> Clipper:
        """What clips."""
        return self._attached.clipper

    @property
    def pruned(self) -> bool:
        """Whether the trial was ended early."""
        return self._attached.pruned is not None

    @property
    def reason(self) -> str | None:
        """Why the trial was ended early; None if it was not."""
        return None if self._attached.pruned is None else self._attached.pruned.reason

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch the Trainer's own clipping off.

        Args:
            args: the Trainer's; ``max_grad_norm`` is 0 until the end of the training.
            state: not used.
            control: told to stop at once if the trial was pruned before the training.
            **kwargs: not used.

        Raises:
            TrainerSetupError: if DeepSpeed clips by itself.
        """
        del state, kwargs
        if args.deepspeed is not None:
            raise TrainerSetupError(
                "TrainingArguments(deepspeed=...)",
                "clips by itself: set the recommended threshold as gradient_clipping in its configuration",
            )
        # A training that raised has no end for callbacks: its arguments still say our 0.
        if self._own is None or self._own[0] is not args:
            self._own = (args, args.max_grad_norm)
        args.max_grad_norm = 0.0
        control.should_training_stop |= self.pruned

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip the gradients of the step.

        Args:
            args: not used.
            state: not used.
            control: told to stop if the trial ends here.
            **kwargs: ``model``, whose gradients are clipped.

        Raises:
            TrainerSetupError: if a parameter is sharded.
        """
        del args, state
        if self._attached.clip_in_trainer(kwargs["model"].parameters()) is None:
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the objective, and stop the Trainer if the trial was pruned.

        Args:
            args: not used.
            state: says how many optimizer steps were taken.
            control: told to stop.
            **kwargs: ``metrics`` of the evaluation; one of several data sets may lack the objective.
        """
        del args
        metrics = kwargs["metrics"]
        if self.metric not in metrics:
            self._other_metrics |= set(metrics)
        elif not self._attached.report(state.global_step, float(metrics[self.metric])):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the Trainer its own clipping back.

        Args:
            args: whose ``max_grad_norm`` is as it was.
            state: not used.
            control: not used.
            **kwargs: not used.

        Raises:
            TrainerSetupError: if there were evaluations, and the objective was in none of them.
        """
        del state, control, kwargs
        if self._own is not None:
            args.max_grad_norm, self._own = self._own[1], None
        if self._attached.trial is not None and self._attached.reported_step < 0 and self._other_metrics:
            raise TrainerSetupError(
                f"metric={self.metric!r}",
                f"is in no evaluation; they have {', '.join(sorted(self._other_metrics))}: name one of these",
            )
