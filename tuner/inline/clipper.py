"""`Clipper`: a clip setting behind the one call that replaces ``torch.nn.utils.clip_grad_norm_``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from tuner.errors import SpecError
from tuner.inline.arguments import Parameters as Parameters
from tuner.inline.arguments import check_constants, listed, told_loss
from tuner.inline.errors import ClipperStateError, CliptuneWarning, NonFiniteGradientError
from tuner.inline.methods import ClipOutcome, Facts, inline_method
from tuner.inline.recommended import Query, recommended_setting
from tuner.inline.steps import StepLog
from tuner.monitors import Monitor
from tuner.parameters import ParameterValue
from tuner.records import LaneRecord
from tuner.spec import ClipSetting


class Steps(Protocol):
    """An optimizer, or what wraps one."""

    def step(self) -> Any:
        """Take the step."""
        ...


class Clipper:
    """A clip setting in a loop of your own, with a record of what it did.

    Call it where ``clip_grad_norm_`` stands: after ``backward`` (with a ``GradScaler``: after ``scaler.unscale_``) and
    before ``optimizer.step``, once per optimizer step. It works on the gradients of one device, without sharding.
    Methods may have a memory, so a clipper is made once, before the loop, and is for one set of parameters.

    For *global_norm* the gradients are those of ``clip_grad_norm_``, bit for bit, with one difference: where the norm
    is NaN or infinite PyTorch multiplies by NaN or 0; every method here leaves such a gradient as it is.

    A setting's ``learning_rate_scale`` is not the clipper's to apply: multiply your learning rate by it.

    Args:
        setting: what to do, as a `ClipSetting` or as its text, for example ``"zclip:2.5"``.
        reference_norm: median gradient norm that a study's probe measured, for methods with constants of that scale;
            None takes each paper's own.
        run_steps: optimizer steps of a full run, by which the record is divided into phases; None leaves phases out.
        monitor: what norms, scale and clip fraction are told to; the clipper does not close it.
        monitor_every: steps between two reads for the monitor, >= 1.
        **constants: the method's other constants, for example ``window`` of AutoClip.

    Attributes:
        setting: see above.
        reference_norm: see above.

    Raises:
        SpecError: if the setting is out of bounds.
        UnknownMethodError: if no method has that name.
        ValueError: if a constant or ``monitor_every`` is out of bounds.
        TypeError: if the method has no constant of that name.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clipper = Clipper.from_setting("global_norm:0.5")
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = (model(torch.ones(8, 2)) - 9.0).square().mean()
        ...     loss.backward()
        ...     norm = clipper(model.parameters(), loss=loss)
        ...     optimizer.step()
        >>> bool(norm > 0.5), clipper.record().clip_fraction
        (True, 1.0)
    """

    def __init__(
        self,
        setting: ClipSetting | str,
        *,
        reference_norm: float | None = None,
        run_steps: int | None = None,
        monitor: Monitor | None = None,
        monitor_every: int = 50,
        **constants: Any,
    ) -> None:
        self.setting = ClipSetting.parse(setting) if isinstance(setting, str) else setting
        if monitor_every < 1:
            raise SpecError("monitor_every", f"must be >= 1, got {monitor_every}")
        if run_steps is not None and run_steps < 1:
            raise SpecError("run_steps", f"must be >= 1, got {run_steps}; leave it out if it is not known")
        check_constants(self.setting, reference_norm, constants)
        self.reference_norm = reference_norm
        self._method = inline_method(self.setting, reference_norm=reference_norm, constants=constants)
        self._log = StepLog(self._method.outcome, run_steps)
        self._newest: Facts | None = None
        self._device: torch.device | None = None
        self._num_steps = 0
        self._is_recommended = False
        self._monitor = monitor
        self._monitor_every = monitor_every

    @classmethod
    def from_setting(
        cls,
        setting: ClipSetting | str,
        *,
        reference_norm: float | None = None,
        run_steps: int | None = None,
        monitor: Monitor | None = None,
        monitor_every: int = 50,
        **constants: Any,
    ) -> Self:
        """A clipper for a setting that is known; see the class.

        Args:
            setting: see the class.
            reference_norm: see the class.
            run_steps: see the class.
            monitor: see the class.
            monitor_every: see the class.
            **constants: see the class.

        Returns:
            The clipper.

        Example:
            >>> Clipper.from_setting("autoclip:10", window=200).setting
            ClipSetting(method='autoclip', threshold=10.0, learning_rate_scale=1.0)
        """
        return cls(
            setting,
            reference_norm=reference_norm,
            run_steps=run_steps,
            monitor=monitor,
            monitor_every=monitor_every,
            **constants,
        )

    @classmethod
    def recommended(
        cls,
        *,
        workload: str,
        parameters: Mapping[str, ParameterValue] | None = None,
        fallback: ClipSetting | str,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float = 2.0,
        run_steps: int | None = None,
        monitor: Monitor | None = None,
        monitor_every: int = 50,
    ) -> Self:
        """A clipper for the setting that the service recommends; one request, then the service is not needed.

        It never fails because of the service. Where there is no usable answer (no service, too slow, refused, nothing
        known, inconclusive) a `CliptuneWarning` says why, and the setting is the last usable answer kept in the cache
        folder (``$XDG_CACHE_HOME/cliptune``, else ``~/.cache/cliptune``), else ``fallback``.

        Args:
            workload: name under which the study was submitted.
            parameters: values of the workload's parameters in this training; an answer for others is not used. None
                takes any.
            fallback: the setting without an answer.
            url: address of the service; None takes CLIPTUNE_URL, else what runs from CLIPTUNE_HOME, else port 8765.
            api_key: access key; None takes CLIPTUNE_API_KEY, else the one kept in CLIPTUNE_HOME.
            timeout: longest wait for the answer, in seconds, all in all.
            run_steps: see the class.
            monitor: see the class.
            monitor_every: see the class.

        Returns:
            The clipper.
        """
        found = recommended_setting(
            Query(workload=workload, parameters=parameters),
            fallback=ClipSetting.parse(fallback) if isinstance(fallback, str) else fallback,
            url=url,
            api_key=api_key,
            timeout=timeout,
        )
        clipper = cls(
            found.setting,
            reference_norm=found.reference_norm,
            run_steps=run_steps,
            monitor=monitor,
            monitor_every=monitor_every,
        )
        clipper._is_recommended = True
        return clipper

    @property
    def num_steps(self) -> int:
        """Calls so far."""
        return self._num_steps

    @property
    def last(self) -> ClipOutcome:
        """What the last call did, 0-dim tensors on the device.

        Raises:
            RuntimeError: before the first call.
        """
        if self._newest is None:
            raise RuntimeError("nothing was clipped yet: call the clipper after backward()")
        with torch.no_grad():
            return self._method.outcome(self._newest)

    @property
    def can_skip(self) -> bool:
        """Whether the method may want a step to be left out, see `step`."""
        return self._method.can_skip

    def clip(
        self,
        parameters: Parameters,
        *,
        loss: Tensor | float | None = None,
        error_if_nonfinite: bool = False,
    ) -> Tensor:
        """Clip the gradients in place, after ``backward`` and before ``optimizer.step``.

        Nothing is read back to the host, unless ``error_if_nonfinite`` asks for it or a monitor is due.

        Args:
            parameters: whose ``.grad`` is clipped; those without one stay without.
            loss: the step's training loss, one number, for the record; *skip_step* looks at it, too.
            error_if_nonfinite: whether to raise for a norm that is NaN or infinite; waits for the device.

        Returns:
            The L2 norm of the whole gradient before clipping, 0-dim, on the gradients' device; 0 without any gradient.

        Raises:
            NonFiniteGradientError: see ``error_if_nonfinite``; the gradients are as they were.
            ParametersChangedError: if the method remembers earlier steps and these are other parameters.
            ValueError: if the loss is not one number, or the method needs parameters and there are none.
        """
        taken = listed(parameters)
        told = told_loss(loss)
        with torch.no_grad():
            facts = self._method.clip(taken, told)
            norm = facts[0]
            if error_if_nonfinite and not bool(norm.isfinite()):
                raise NonFiniteGradientError(float(norm))
            self._newest, self._device = facts, norm.device
            self._num_steps += 1
            self._log.add(facts, told)
            if self._monitor is not None and self._num_steps % self._monitor_every == 0:
                self._tell(self._monitor)
        return norm

    #: Stands where ``clip_grad_norm_`` stood: ``clipper(model.parameters())``.
    __call__ = clip

    def step(self, optimizer: Steps) -> None:
        """``optimizer.step()``, unless the last call said that this step is to be skipped.

        Only *skip_step* skips; for it, and for no other method, this waits for the device. With a ``GradScaler``:
        ``if not clipper.can_skip or not clipper.last.skipped: scaler.step(optimizer)``.

        Args:
            optimizer: whose step it is.
        """
        if self.can_skip and self._newest is not None and bool(self.last.skipped):
            return
        optimizer.step()

    @torch.no_grad()
    def record(self) -> LaneRecord:
        """What all calls so far recorded, norms before clipping; waits for the device.

        Returns:
            The record. ``divergence_step`` is None, because only the objective tells whether a run diverged: a norm
            that is not finite is an everyday event under a ``GradScaler``, and counted in ``num_non_finite``. There are
            ``phases`` only if ``run_steps`` was given.
        """
        return self._log.read()

    @torch.no_grad()
    def drain_norms(self) -> list[float]:
        """The finite gradient norms before clipping since the last call of this; waits for the device.

        Returns:
            One per step, in order; evenly spaced ones of more than 8192 steps.
        """
        return self._log.drain()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, for ``torch.save`` beside the optimizer's state.

        Returns:
            The setting as text, the number of steps, and tensors by name: what the method remembers and the record.
        """
        return {
            "setting": str(self.setting),
            "num_steps": self._num_steps,
            "method": dict(self._method.state()),
            "record": self._log.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, before the first call or after.

        A clipper from `recommended` may have another setting than before: the study was run again, or the service is
        away. The training must go on, so a `CliptuneWarning` says so, and the method and its record begin anew.

        Args:
            state: what `state_dict` gave, for the same setting and parameters.

        Raises:
            ClipperStateError: if it is of another setting and this one was not recommended, or of other parameters.
        """
        missing = {"setting", "num_steps", "method", "record"} - set(state)
        if missing:
            raise ClipperStateError(f"it has no {', '.join(sorted(missing))}")
        if state["setting"] != str(self.setting):
            if not self._is_recommended:
                raise ClipperStateError(f"it is of {state['setting']}, and this clipper is {self.setting}")
            warnings.warn(
                CliptuneWarning(
                    f"the checkpoint was trained with {state['setting']}; going on with {self.setting}, which is "
                    "recommended now, and with a record of its own"
                ),
                stacklevel=3,
            )
            self._num_steps = int(state["num_steps"])
            return
        self._method.load(state["method"])
        self._log.load(state["record"], self._device)
        self._num_steps = int(state["num_steps"])
        self._newest = None

    def _tell(self, monitor: Monitor) -> None:
        """Show the figures; a monitor that breaks is let go, because it is worth less than the training."""
        try:
            monitor.log(self._num_steps, self._log.figures())
        except Exception as error:
            self._monitor = None
            warnings.warn(
                CliptuneWarning(
                    f"the monitor is not told any more, it failed at step {self._num_steps}: {error!r}"
                ),
                stacklevel=3,
            )
