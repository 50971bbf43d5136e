"""Clip, report and prune under the Lightning Trainer.

Works with both packages, ``lightning`` and ``pytorch_lightning``. The callback takes the place of the module's
``configure_gradient_clipping`` while ``fit`` runs: Lightning calls it once per optimizer step, whatever
``accumulate_grad_batches`` is, after fp16 gradients were unscaled and after every ``on_before_optimizer_step`` hook.
Those hooks go on to see gradients before clipping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuner.inline import Clipper
from tuner.integrations.attached import Attached, Trial
from tuner.integrations.errors import TrainerSetupError

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    from pytorch_lightning.callbacks import Callback  # type: ignore[assignment]

_HOOK = "configure_gradient_clipping"
#: Precision plugins under which no process holds a whole gradient, or which clip by themselves.
_SHARDED = ("DeepSpeedPrecision", "FSDPPrecision")


class ClipCallback(Callback):
    """Clips with a clipper or a trial in place of the Trainer's own clipping.

    With a trial, every validation's ``monitor_metric`` is reported; a pruned trial ends ``fit`` after that
    validation, without an exception.

    Args:
        clipper_or_trial: what to clip with, and with a trial whom to report to.
        monitor_metric: the objective, as the module logs it in validation; smaller is better.
        logs_norm: whether ``pre_clip_norm`` is logged with the Trainer's loggers, at their interval.

    Attributes:
        monitor_metric: see above.

    Example:
        >>> callback = ClipCallback(Clipper.from_setting("global_norm:0.5"))
        >>> callback.pruned, callback.clipper.setting.threshold
        (False, 0.5)
    """

    def __init__(
        self,
        clipper_or_trial: Clipper | Trial,
        *,
        monitor_metric: str = "val_loss",
        logs_norm: bool = True,
    ) -> None:
        super().__init__()
        self.monitor_metric = monitor_metric
        self._attached = Attached(clipper_or_trial)
        self._logs_norm = logs_norm
        self._loss: Tensor | None = None

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

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the place of the Trainer's clipping.

        Args:
            trainer: Lightning's.
            pl_module: the module that trains.
            stage: nothing is done but for ``fit``.

        Raises:
            TrainerSetupError: if something else clips already, or if clipping would not reach the gradients.
        """
        if stage != "fit":
            return
        require_clippable(trainer, pl_module)
        # Of a fit that ended between two steps.
        self._loss = None

        # A function, no bound method: callbacks that copy the module must not copy the trial with it.
        def configure_gradient_clipping(
            optimizer: torch.optim.Optimizer,
            gradient_clip_val: float | None = None,
            gradient_clip_algorithm: str | None = None,
        ) -> None:
            del gradient_clip_val, gradient_clip_algorithm
            self._clip(trainer, pl_module, optimizer)

        setattr(pl_module, _HOOK, configure_gradient_clipping)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own clipping back."""
        del trainer, stage
        vars(pl_module).pop(_HOOK, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error, which Lightning lets through without ``teardown``."""
        del exception
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """A trial that was pruned before, for example by a validation at step 0, trains no more."""
        del pl_module
        if self.pruned:
            _stop(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Add up the losses of the batches that make one step; Lightning has divided them by their number."""
        del pl_module
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        unscaled = loss.detach()
        if scaler is not None:
            unscaled = unscaled / scaler.scale(torch.ones((), device=loss.device))
        self._loss = unscaled if self._loss is None else self._loss + unscaled

    def _clip(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None and getattr(
            optimizer, "_step_supports_amp_scaling", False
        ):
            raise TrainerSetupError(
                type(optimizer).__name__,
                "unscales fp16 gradients inside of its step, after clipping: build it with fused=False",
            )
        loss, self._loss = self._loss, None
        norm = self._attached.clip_in_trainer(trainer.precision_plugin.main_params(optimizer), loss=loss)
        if norm is None:
            _stop(trainer)
        elif self._logs_norm:
            pl_module.log("pre_clip_norm", norm)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the objective, and stop the Trainer if the trial was pruned.

        Args:
            trainer: Lightning's.
            pl_module: the module that trains.

        Raises:
            TrainerSetupError: if the module did not log the metric in validation.
        """
        del pl_module
        if trainer.sanity_checking or self._attached.trial is None:
            return
        if self.monitor_metric not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise TrainerSetupError(
                f"monitor_metric={self.monitor_metric!r}",
                f"was not logged in validation, which logged {logged}: call self.log({self.monitor_metric!r}, ...) in "
                "validation_step",
            )
        value = float(trainer.callback_metrics[self.monitor_metric])
        if not self._attached.report(trainer.global_step, value):
            _stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the clipper remembers, in Lightning's own checkpoints."""
        return {
            "clipper": self.clipper.state_dict(),
            "reported_step": self._attached.reported_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.clipper.load_state_dict(state_dict["clipper"])
        self._attached.reported_step = state_dict["reported_step"]


def require_clippable(trainer: Any, pl_module: Any) -> None:
    """Check that our clipping would be the only one, and would see whole gradients.

    Args:
        trainer: Lightning's.
        pl_module: the module that trains.

    Raises:
        TrainerSetupError: if not; it says what to change.
    """
    value = trainer.gradient_clip_val
    if value is not None and value > 0:
        raise TrainerSetupError(
            f"Trainer(gradient_clip_val={value})",
            "clips too, so that gradients would be clipped twice: leave it out, the callback does the clipping",
        )
    if not pl_module.automatic_optimization:
        raise TrainerSetupError(
            f"{type(pl_module).__name__}.automatic_optimization",
            "is False, so that Lightning never clips: leave the callback out, and call clipper(self.parameters()) or "
            "trial.clip(...) between manual_backward and optimizer.step",
        )
    owner = _owner_of_hook(pl_module)
    if owner is not None:
        raise TrainerSetupError(
            f"{owner}.{_HOOK}", "clips too and would be replaced: remove it, or the callback"
        )
    plugin = type(trainer.precision_plugin).__name__
    if plugin in _SHARDED:
        raise TrainerSetupError(
            plugin,
            "clips by itself or splits gradients over devices, where each sees a part's norm only: set the recommended "
            "threshold in the strategy's own configuration, or use strategy='ddp'",
        )


def _owner_of_hook(pl_module: Any) -> str | None:
    """Who has a clipping hook of its own; None if it is Lightning's."""
    if _HOOK in vars(pl_module):
        return "another ClipCallback"
    owner = next(each for each in type(pl_module).__mro__ if _HOOK in vars(each))
    is_lightning = owner.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
    return None if is_lightning else owner.__name__


def _stop(trainer: Any) -> None:
    """End ``fit`` after the running hook, whatever ``min_epochs`` and ``min_steps`` ask for."""
    trainer.fit_loop.min_epochs = 0
    trainer.fit_loop.epoch_loop.min_steps = 0
    trainer.should_stop = True
