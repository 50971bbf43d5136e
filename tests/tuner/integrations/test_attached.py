"""What every framework's callback shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.integrations.attached import Attached, require_whole
from tuner.integrations.errors import TrainerSetupError


def with_gradient(*values: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def test_clipper_alone_clips_and_reports_to_nobody() -> None:
    attached = Attached(Clipper.from_setting("global_norm:1"))
    parameter = with_gradient(3.0, 4.0)
    assert float(attached.clip(iter([parameter]))) == 5.0
    assert parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8])
    assert attached.report(1, 0.5)
    assert attached.pruned is None


def test_steps_are_reported_once_and_rising(make_trial: Callable[..., Any]) -> None:
    trial, told = make_trial()
    attached = Attached(trial)
    assert all(attached.report(step, 0.5) for step in (0, 4, 4, 2, 8))
    assert [step for step, _ in told.reports] == [0, 4, 8]


def test_pruned_trial_is_told_no_more(make_trial: Callable[..., Any]) -> None:
    trial, told = make_trial(prune_at=4)
    attached = Attached(trial)
    assert [attached.report(step, 0.5) for step in (2, 4, 6)] == [True, False, False]
    assert [step for step, _ in told.reports] == [2, 4]
    parameter = with_gradient(3.0, 4.0)
    assert attached.clip_in_trainer([parameter]) is None
    assert parameter.grad is not None and parameter.grad.tolist() == [3.0, 4.0]


def test_trial_that_ends_while_clipping_raises_outside_of_a_trainer(make_trial: Callable[..., Any]) -> None:
    trial, _ = make_trial(stop_after_clips=1)
    attached = Attached(trial)
    with pytest.raises(TrialPruned, match="measured enough"):
        attached.clip([with_gradient(3.0, 4.0)])


def test_sharded_parameters_are_refused() -> None:
    """FSDP marks what it flattened; a ``DTensor`` has a mesh."""
    flattened, sharded = with_gradient(1.0), with_gradient(1.0)
    flattened._is_fsdp_flattened = True  # type: ignore[attr-defined]
    sharded.device_mesh = object()  # type: ignore[attr-defined]
    require_whole([with_gradient(1.0)])
    for each in (flattened, sharded):
        with pytest.raises(TrainerSetupError, match=r"a parameter of shape \(1,\) is sharded") as info:
            Attached(Clipper.from_setting("none")).clip([with_gradient(1.0), each])
        assert info.value.part == "a parameter of shape (1,)"
