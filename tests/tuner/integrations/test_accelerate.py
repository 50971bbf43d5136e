"""Clipping in a loop that the real Accelerate prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.integrations.accelerate import clip_after_unscale
from tuner.integrations.errors import TrainerSetupError

NUM_BATCHES = 12
#: ``clip(accelerator, model, loss)`` in the place of the clipping.
Clip = Callable[[Accelerator, nn.Module, Tensor], object]


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its state per process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(clip: Clip, *, accumulate: int = 1, scaler: torch.amp.GradScaler | None = None) -> list[Tensor]:
    """Weights after an epoch over the same data.

    On a GPU ``mixed_precision="fp16"`` makes the scaler; on a CPU Accelerate has none, and is given one.
    """
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    accelerator.scaler = scaler
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    if scaler is not None:
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    for _ in range(NUM_BATCHES):
        inputs = torch.randn(8, 4)
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs).squeeze(1), 3 * inputs.sum(dim=1))
            accelerator.backward(loss)
            clip(accelerator, model, loss)
            optimizer.step()
            optimizer.zero_grad()
    return [each.detach().clone() for each in model.parameters()]


def are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_is_accelerates_own_clipping_bit_for_bit(accumulate: int) -> None:
    norms: list[Tensor] = []

    def theirs(accelerator: Accelerator, model: nn.Module, loss: Tensor) -> None:
        del loss
        if accelerator.sync_gradients:
            norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.5))

    clipper = Clipper.from_setting("global_norm:0.5")
    expected = train(theirs, accumulate=accumulate)
    found = train(
        lambda accelerator, model, loss: clip_after_unscale(accelerator, clipper, model, loss=loss),
        accumulate=accumulate,
    )
    assert are_equal(found, expected)
    assert clipper.num_steps == NUM_BATCHES // accumulate, "once per optimizer step"
    assert clipper.drain_norms() == [float(norm) for norm in norms]


def test_between_the_batches_of_a_step_there_is_no_norm() -> None:
    norms: list[Tensor | None] = []
    clipper = Clipper.from_setting("none")
    train(
        lambda accelerator, model, loss: norms.append(
            clip_after_unscale(accelerator, clipper, model.parameters())
        ),
        accumulate=4,
    )
    assert [norm is None for norm in norms] == [True, True, True, False] * 3


def test_fp16_gradients_are_clipped_after_unscaling() -> None:
    """A loss scale of 1024 would show in the norms."""
    full, half = Clipper.from_setting("global_norm:0.5"), Clipper.from_setting("global_norm:0.5")
    expected = train(lambda accelerator, model, loss: clip_after_unscale(accelerator, full, model))
    found = train(
        lambda accelerator, model, loss: clip_after_unscale(accelerator, half, model),
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0),
    )
    assert half.drain_norms() == full.drain_norms(), "a power of two loses nothing"
    assert are_equal(found, expected)


def test_skipped_step_changes_neither_weights_nor_momentum() -> None:
    """Every gradient is ten times as large as the one before."""
    clipper = Clipper.from_setting("skip_step:1", window=4)
    history: list[Tensor] = []

    def clip(accelerator: Accelerator, model: nn.Module, loss: Tensor) -> None:
        history.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
        for each in model.parameters():
            assert each.grad is not None
            each.grad.copy_(torch.full_like(each, 10.0 ** len(history)))
        clip_after_unscale(accelerator, clipper, model, loss=loss.detach() * 0)

    final = torch.cat([each.flatten() for each in train(clip)])
    assert bool(clipper.last.skipped)
    assert torch.equal(history[-1], final)
    assert not torch.equal(history[0], final)


def test_trial_clips_and_its_end_passes(make_trial: Callable[..., Any]) -> None:
    trial, _ = make_trial(stop_after_clips=3)
    with pytest.raises(TrialPruned, match="measured enough"):
        train(lambda accelerator, model, loss: clip_after_unscale(accelerator, trial, model))
    assert trial.clipper.num_steps == 3


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_what_holds_no_whole_gradient_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType(kind))
    with pytest.raises(TrainerSetupError, match=rf"distributed_type {kind} clips by itself or splits"):
        clip_after_unscale(accelerator, Clipper.from_setting("none"), nn.Linear(1, 1))
