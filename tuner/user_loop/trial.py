"""The trial that a training function is given: its setting, its seed, where it clips and where it reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting

#: Calls after the one that stopped a trial which are answered by the same `TrialPruned`, before the loop counts as
#: one that can't be stopped.
MAX_REFUSED = 100

#: ``(optimizer steps so far) -> why the lane ends here, or None``.
OnClip = Callable[[int], str | None]
#: ``(step, value) -> why the lane ends here, or None``.
OnReport = Callable[[int, float], str | None]


class ContractError(RuntimeError):
    """A training function does not do what a trial needs of it; the message says what to change."""


class RunawayError(BaseException):
    """A training function goes on although it was stopped; not an `Exception`, so that catching those won't hide it."""


class FunctionTrial:
    """One trial under one seed, as a training function sees it.

    Args:
        setting: what to clip with.
        seed: training seed.
        parameters: the workload's.
        num_steps: optimizer steps of a full run.
        clipper: does what the setting says.
        on_clip: called after every clipped step.
        on_report: called with every report.

    Attributes:
        seed: training seed; Python's, NumPy's and PyTorch's global generators are seeded with it already.
        parameters: the workload's, by name.
        num_steps: optimizer steps of a full run.
        clipper: what `clip` calls.
        stopped: why nothing more is to be trained; None while it may go on.
        num_refused: calls after it was stopped.
        knows_rate_scale: whether the setting or its factor on the learning rate was read.
    """

    def __init__(
        self,
        *,
        setting: ClipSetting,
        seed: int,
        parameters: Mapping[str, ParameterValue],
        num_steps: int,
        clipper: Clipper,
        on_clip: OnClip,
        on_report: OnReport,
    ) -> None:
        self.seed = seed
        self.parameters: Mapping[str, ParameterValue] = MappingProxyType(dict(parameters))
        self.num_steps = num_steps
        self.clipper = clipper
        self.stopped: str | None = None
        self.num_refused = 0
        self.knows_rate_scale = False
        self._setting = setting
        self._on_clip = on_clip
        self._on_report = on_report
        self._pid = os.getpid()

    @property
    def setting(self) -> ClipSetting:
        """The clip setting of this trial."""
        self.knows_rate_scale = True
        return self._setting

    @property
    def learning_rate_scale(self) -> float:
        """Factor on the learning rate; multiply yours by it. 1 unless the study tunes the learning rate too."""
        self.knows_rate_scale = True
        return self._setting.learning_rate_scale

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that the trial was given to, not a fork of it."""
        return os.getpid() == self._pid

    def clip(
        self, parameters: nn.Module | Tensor | Iterable[Tensor], *, loss: Tensor | None = None
    ) -> Tensor:
        """Clip the gradients in place; stands where ``torch.nn.utils.clip_grad_norm_`` stood, once per step.

        Args:
            parameters: a module, or tensors with gradients.
            loss: the training loss of this step, to be recorded; it is not read back to the host.

        Returns:
            The total L2 norm before clipping, a tensor without dimensions on the gradients' device.

        Raises:
            TrialPruned: if the trial was stopped: let it pass.
            RuntimeError: in a process that was forked from the one that got the trial.
            RunawayError: if the loop goes on long after it was stopped.
        """
        self._require_running("clip")
        norm = self.clipper(parameters, loss=loss)
        self._stop(self._on_clip(self.clipper.num_steps))
        return norm

    def report(self, step: int, value: float) -> None:
        """Tell the objective on held-out data.

        Args:
            step: optimizer steps taken, 0 before the first, rising; the last report is at ``num_steps``.
            value: the objective, minimized; NaN or infinite says that the training diverged.

        Raises:
            TrialPruned: if the trial is to end here: let it pass.
            SpecError: if the step does not rise, or one of them is no number.
            RuntimeError: in a process that was forked from the one that got the trial.
            RunawayError: if the loop goes on long after it was stopped.
        """
        self._require_running("report")
        self._stop(self._on_report(step, value))

    def end(self) -> None:
        """Its function has returned: a thread that it left behind clips and reports nothing more."""
        self.stopped = self.stopped or "its function has returned"

    def _require_running(self, method: str) -> None:
        if not self.is_own_process:
            raise RuntimeError(
                f"trial.{method} was called in a forked process (pid {os.getpid()}): call it in the process that was "
                "given the trial"
            )
        if self.stopped is not None:
            self.num_refused += 1
            if self.num_refused > MAX_REFUSED:
                raise RunawayError(
                    f"the function went on after it was stopped ({self.stopped}), for {MAX_REFUSED} more calls: let "
                    "TrialPruned pass"
                )
            raise TrialPruned(self.stopped)

    def _stop(self, reason: str | None) -> None:
        if reason is not None:
            self.stopped = reason
            raise TrialPruned(reason)
