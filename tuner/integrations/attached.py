"""What a framework's callback holds: the clipper that clips, and the trial that is told the objective.

The frameworks differ in where gradients are clipped and metrics appear. What is done there is the same, and is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.integrations.distributed import RankZeroTrial, agreed_loss, num_ranks
from tuner.integrations.errors import TrainerSetupError
from tuner.integrations.skipping import drop_skipped


class Trial(Protocol):
    """What is used of a trial handle; see `tuner.inline`."""

    @property
    def clipper(self) -> Clipper:
        """Clips, and keeps what it saw."""

    def clip(self, parameters: nn.Module | Iterable[Tensor], *, loss: Tensor | None = None) -> Tensor:
        """Clip the gradients in place; the norm before clipping.

        Raises:
            TrialPruned: if nothing more is to be trained.
        """

    def report(self, step: int, value: float) -> None:
        """Tell the objective on held-out data after so many optimizer steps.

        Raises:
            TrialPruned: if nothing more is to be trained.
        """


class Attached:
    """A clipper or a trial, attached to a trainer.

    Args:
        clipper_or_trial: a clipper alone has nobody to report to.

    Attributes:
        trial: who is told the objective; None for a clipper alone.
        pruned: why the trial was ended early; None while it was not.
        reported_step: the last step that was reported; -1 before the first.
    """

    def __init__(self, clipper_or_trial: Clipper | Trial) -> None:
        self.trial: Trial | None = None
        self._clipper: Clipper | None = None
        if isinstance(clipper_or_trial, Clipper):
            self._clipper = clipper_or_trial
        else:
            self.trial = clipper_or_trial
        self.pruned: TrialPruned | None = None
        self.reported_step = -1

    @property
    def clipper(self) -> Clipper:
        """What clips.

        A trial is asked for its clipper when it is first needed: before that, ranks may not know of one another.
        """
        if self._clipper is None:
            assert self.trial is not None
            self._clipper = self.trial.clipper
        return self._clipper

    def clip(self, parameters: Iterable[Tensor], *, loss: Tensor | None = None) -> Tensor:
        """Clip the gradients in place; where the method skips the step, take them away.

        Args:
            parameters: whose ``.grad`` is clipped.
            loss: the step's training loss on this rank, for methods that look at it.

        Returns:
            The gradient norm before clipping, shape (), on the device.

        Raises:
            TrainerSetupError: if a parameter is sharded.
            TrialPruned: if the trial ends here; the gradients are clipped.
        """
        whole = list(parameters)
        require_whole(whole)
        if self.trial is None:
            norm = self.clipper(whole, loss=agreed_loss(self.clipper, loss))
        else:
            norm = self.trial.clip(whole, loss=loss)
        drop_skipped(self.clipper, whole)
        return norm

    def clip_in_trainer(self, parameters: Iterable[Tensor], *, loss: Tensor | None = None) -> Tensor | None:
        """The same where an exception would break the trainer: that the trial ends is kept in ``pruned``.

        Args:
            parameters: see `clip`.
            loss: see `clip`.

        Returns:
            The norm; None if the trial has ended, and the trainer is to be stopped.
        """
        if self.pruned is not None:
            return None
        try:
            return self.clip(parameters, loss=loss)
        except TrialPruned as pruned:
            self.pruned = pruned
            return None

    def report(self, step: int, value: float) -> bool:
        """Tell the trial, if there is one, unless this step or a later one was reported already.

        Args:
            step: optimizer steps taken.
            value: the objective on held-out data.

        Returns:
            Whether training goes on.

        Raises:
            TrainerSetupError: if several ranks train, and the trial is not one for all of them.
        """
        if self.trial is None or self.pruned is not None or step <= self.reported_step:
            return self.pruned is None
        if num_ranks() > 1 and not isinstance(self.trial, RankZeroTrial):
            raise TrainerSetupError(
                f"a {type(self.trial).__name__} on {num_ranks()} ranks",
                "would be reported by each of them: give every rank RankZeroTrial(trial), which holds it on rank 0",
            )
        self.reported_step = step
        try:
            self.trial.report(step, value)
        except TrialPruned as pruned:
            self.pruned = pruned
        return self.pruned is None


def require_whole(parameters: Iterable[Tensor]) -> None:
    """Check that no parameter is a shard of one: the norm of a part is not the gradient's norm.

    Args:
        parameters: to be clipped.

    Raises:
        TrainerSetupError: if one is a ``DTensor``, or flattened by FSDP.
    """
    for each in parameters:
        if hasattr(each, "device_mesh") or getattr(each, "_is_fsdp_flattened", False):
            raise TrainerSetupError(
                f"a parameter of shape {tuple(each.shape)}",
                "is sharded over several devices, where each sees its own part's norm only: use the framework's own "
                "clipping with the recommended threshold, or train with DDP",
            )
