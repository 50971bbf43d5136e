"""One trial for all ranks of a distributed training: rank 0 talks, everybody hears the decision.

Under data parallelism (DDP) every rank holds the whole averaged gradient. So each rank clips by itself, and all get
the same norm and the same factor: clipping needs no communication. A trial does: it must be reported once, and a
decision to stop must reach all ranks at the same step, or those that go on wait for ever for those that stopped.

Without an initialized process group everything here is what it would be on a single rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tuner.errors import TrialPruned, TunerError
from tuner.inline import Clipper
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting

T = TypeVar("T")


class RankZeroError(TunerError, RuntimeError):
    """Rank 0 failed while the other ranks waited for it; its own error is in its own log.

    Attributes:
        cause: type and text of rank 0's error.
    """

    code = "rank_zero_failed"

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"rank 0 failed, so that this rank stops too: {cause}; see the log of rank 0")


class TrialOnRankZero(Protocol):
    """What rank 0 holds: a trial handle."""

    @property
    def setting(self) -> ClipSetting:
        """What to train with."""

    @property
    def seed(self) -> int:
        """The training seed."""

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """The study's own parameters."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a full run."""

    @property
    def clipper(self) -> Clipper:
        """Clips, and keeps what it saw."""

    def clip(self, parameters: nn.Module | Iterable[Tensor], *, loss: Tensor | None = None) -> Tensor:
        """Clip by the clipper."""

    def report(self, step: int, value: float) -> None:
        """Tell the objective."""


class RankZeroTrial:
    """A trial handle on every rank, of a trial that rank 0 holds.

    Making one is a collective call, and so is `report`: every rank must do the same, in the same order. If the
    process group is not there yet, because the framework makes it later, the first use is the collective call instead.

    Args:
        trial: the trial on rank 0; on other ranks it is ignored, and may be None.
        group: the ranks that train together; None for all.

    Raises:
        RankZeroError: on the other ranks, if rank 0 has no trial.
        TypeError: on rank 0, likewise.
    """

    def __init__(self, trial: TrialOnRankZero | None, *, group: dist.ProcessGroup | None = None) -> None:
        self._trial = trial
        self._group = group
        if num_ranks(group) > 1:
            _ = self._told

    @classmethod
    def ask(
        cls, ask: Callable[[], TrialOnRankZero | None], *, group: dist.ProcessGroup | None = None
    ) -> RankZeroTrial | None:
        """Let rank 0 ask for a trial.

        Args:
            ask: called on rank 0 only, for example ``lambda: client.ask(study_id)``.
            group: the ranks that train together; None for all.

        Returns:
            The trial on every rank; None on every rank if there is none left.

        Raises:
            RankZeroError: on the other ranks, if asking raised on rank 0, where the error itself is raised.
        """
        asked: list[TrialOnRankZero | None] = []

        def has_one() -> bool:
            asked.append(ask())
            return asked[0] is not None

        if not on_rank_zero(has_one, group):
            return None
        return cls(asked[0] if asked else None, group=group)

    @cached_property
    def _told(self) -> dict[str, Any]:
        """What rank 0 told of its trial."""
        return on_rank_zero(self._facts, self._group)

    def _facts(self) -> dict[str, Any]:
        trial = self._trial
        if trial is None:
            raise TypeError("rank 0 must hold the trial, got None")
        return {
            # Not the trial's own setting, which may take note of being read.
            "setting": dataclasses.asdict(trial.clipper.setting),
            "seed": trial.seed,
            "parameters": dict(trial.parameters),
            "num_steps": trial.num_steps,
            "reference_norm": trial.clipper.reference_norm,
        }

    @property
    def setting(self) -> ClipSetting:
        """What to train with."""
        told = self._told
        if self._trial is not None and is_rank_zero(self._group):
            return self._trial.setting
        return ClipSetting(**told["setting"])

    @property
    def seed(self) -> int:
        """The training seed, the same on all ranks; add the rank to it for data."""
        seed: int = self._told["seed"]
        return seed

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """The study's own parameters."""
        parameters: Mapping[str, ParameterValue] = self._told["parameters"]
        return parameters

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a full run."""
        num_steps: int = self._told["num_steps"]
        return num_steps

    @cached_property
    def clipper(self) -> Clipper:
        """This rank's clipper; rank 0's is the trial's own, whose record is the trial's."""
        told = self._told
        if self._trial is not None and is_rank_zero(self._group):
            return self._trial.clipper
        return Clipper.from_setting(ClipSetting(**told["setting"]), reference_norm=told["reference_norm"])

    def clip(self, parameters: nn.Module | Iterable[Tensor], *, loss: Tensor | None = None) -> Tensor:
        """Clip this rank's gradients in place, after DDP averaged them.

        On several ranks no decision is heard here, which would cost a message per step: only `report` ends a trial.

        Args:
            parameters: the module or its parameters.
            loss: this rank's training loss; where the method looks at it, its mean over the ranks decides.

        Returns:
            The gradient norm before clipping, the same on all ranks, shape (), on the device.
        """
        if num_ranks(self._group) == 1 and self._trial is not None:
            return self._trial.clip(parameters, loss=loss)
        return self.clipper(parameters, loss=agreed_loss(self.clipper, loss, self._group))

    def report(self, step: int, value: float) -> None:
        """Report from rank 0, and learn on every rank whether to go on.

        Args:
            step: optimizer steps taken.
            value: the objective on held-out data; rank 0's counts, so take `mean_over_ranks` first if ranks saw
                different data.

        Raises:
            TrialPruned: on every rank, if the trial is to stop.
            RankZeroError: on the other ranks, if the report failed on rank 0, where the error itself is raised.
        """
        _ = self._told

        def tell() -> None:
            assert self._trial is not None
            self._trial.report(step, value)

        on_rank_zero(tell, self._group)

    def __enter__(self) -> RankZeroTrial:
        """Enter rank 0's trial, if it is a context manager."""
        enter = getattr(self._trial, "__enter__", None)
        if enter is not None and is_rank_zero(self._group):
            enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        """Leave rank 0's trial; being pruned is no error on any rank."""
        leave = getattr(self._trial, "__exit__", None)
        if leave is not None and is_rank_zero(self._group):
            return bool(leave(kind, error, where))
        return isinstance(error, TrialPruned)


def on_rank_zero(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do something on rank 0 and have its result, or its failure, on every rank. A collective call.

    Args:
        work: called on rank 0 only; its result is a JSON value.
        group: the ranks that take part; None for all.

    Returns:
        The result.

    Raises:
        TrialPruned: on every rank, if ``work`` raised it.
        RankZeroError: on the other ranks, if it raised anything else, which rank 0 raises itself.
    """
    if num_ranks(group) == 1:
        return work()
    if is_rank_zero(group):
        try:
            result = work()
            told = json.dumps({"result": result})
        except TrialPruned as pruned:
            _broadcast(json.dumps({"pruned": pruned.reason}), group)
            raise
        # Whatever ends rank 0, the others must not wait for it.
        except BaseException as error:
            _broadcast(json.dumps({"failed": f"{type(error).__name__}: {error}"}), group)
            raise
        _broadcast(told, group)
        return result
    heard = json.loads(_broadcast(None, group))
    if "pruned" in heard:
        raise TrialPruned(heard["pruned"])
    if "failed" in heard:
        raise RankZeroError(heard["failed"])
    answer: T = heard["result"]
    return answer


def mean_over_ranks(
    value: Tensor | float, *, weight: float = 1.0, group: dist.ProcessGroup | None = None
) -> float:
    """The mean of each rank's number. A collective call that waits for the device.

    Args:
        value: this rank's, for example the mean loss over its part of the held-out data; NaN makes the mean NaN.
        weight: how much it counts, for example the size of that part; > 0.
        group: the ranks that take part; None for all.

    Returns:
        The weighted mean, the same on every rank.

    Example:
        Without a process group there is one rank.

        >>> mean_over_ranks(1.5)
        1.5
    """
    if num_ranks(group) == 1:
        return float(value)
    sums = torch.tensor([float(value) * weight, weight], dtype=torch.float64, device=_device(group))
    dist.all_reduce(sums, group=group)
    return float(sums[0] / sums[1])


def agreed_loss(
    clipper: Clipper, loss: Tensor | None, group: dist.ProcessGroup | None = None
) -> Tensor | None:
    """The loss that a method may look at: ranks that decided by their own losses would drift apart.

    Args:
        clipper: whose method.
        loss: this rank's, one number; None on one rank means None on all.
        group: the ranks that train together; None for all.

    Returns:
        The mean over the ranks, on the device, for a method that skips steps; otherwise the loss as it is.
    """
    if loss is None or not clipper.can_skip or num_ranks(group) == 1:
        return loss
    total = loss.detach().clone()
    dist.all_reduce(total, group=group)
    return total / num_ranks(group)


def num_ranks(group: dist.ProcessGroup | None = None) -> int:
    """How many processes train together; 1 without an initialized process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def is_rank_zero(group: dist.ProcessGroup | None = None) -> bool:
    """Whether this process is the one that talks."""
    return num_ranks(group) == 1 or dist.get_rank(group) == 0


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where the group's backend wants its tensors."""
    is_nccl = dist.get_backend(group) == dist.Backend.NCCL
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")


def _broadcast(document: str | None, group: dist.ProcessGroup | None) -> str:
    """Send rank 0's document to all; it is JSON, because what arrives must not be code."""
    device = _device(group)
    encoded = torch.tensor(list((document or "").encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(encoded)], device=device)
    dist.broadcast(size, group=group, group_src=0)
    if document is None:
        encoded = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(encoded, group=group, group_src=0)
    return bytes(encoded.tolist()).decode()
