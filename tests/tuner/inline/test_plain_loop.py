"""Gradient accumulation and a real GradScaler: the gradients and weights of the same loop with PyTorch's function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tuner import Clipper

Clip = Callable[[nn.Module], Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(4, 8, generator=generator) for _ in range(count)]
    return [(each, 3 * each.sum(dim=1)) for each in inputs]


def train(clip: Clip, *, accumulate: int = 1, init_scale: float | None = None, steps: int = 30) -> nn.Module:
    """Train in fp32, or in fp16 under a scaler; clip after unscaling, once per step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    is_half = init_scale is not None
    scaler = torch.amp.GradScaler("cpu", enabled=is_half, init_scale=init_scale or 1.0, growth_interval=10)
    data = iter(batches(steps * accumulate))
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs, targets = next(data)
            with torch.autocast("cpu", dtype=torch.float16, enabled=is_half):
                loss = (model(inputs).squeeze(1).float() - targets).square().mean() / accumulate
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip(model)
        scaler.step(optimizer)
        scaler.update()
    return model


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("init_scale", [None, 2.0**8, 2.0**20])
def test_drop_in_for_clip_grad_norm_bit_for_bit(accumulate: int, init_scale: float | None) -> None:
    clipper = Clipper.from_setting("global_norm:0.5", run_steps=30)
    expected: list[float] = []

    def theirs(model: nn.Module) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        expected.append(norm.item())
        return norm

    ours = train(lambda model: clipper(model.parameters()), accumulate=accumulate, init_scale=init_scale)
    reference = train(theirs, accumulate=accumulate, init_scale=init_scale)
    for left, right in zip(ours.parameters(), reference.parameters(), strict=True):
        assert left.isfinite().all()
        assert torch.equal(left, right)
    finite = [norm for norm in expected if norm < float("inf")]
    assert clipper.drain_norms() == finite
    record = clipper.record()
    assert (record.num_steps, record.num_non_finite) == (30, 30 - len(finite))
    assert (record.num_non_finite > 0) == (init_scale == 2.0**20), "a large scale overflows at first"
    assert record.divergence_step is None


def test_norms_are_in_the_gradients_own_unit_whatever_the_loss_scale() -> None:
    full, half = Clipper.from_setting("none"), Clipper.from_setting("none")
    train(lambda model: full(model), steps=3)
    train(lambda model: half(model), init_scale=2.0**8, steps=3)
    assert half.drain_norms() == pytest.approx(full.drain_norms(), rel=0.02)


def test_accumulated_gradient_is_clipped_as_that_of_the_large_batch() -> None:
    inputs, targets = (torch.cat(each) for each in zip(*batches(4), strict=True))
    large, small = network(), network()
    (large(inputs).squeeze(1) - targets).square().mean().backward()
    for part, wanted in batches(4):
        ((small(part).squeeze(1) - wanted).square().mean() / 4).backward()
    norms = [Clipper.from_setting("global_norm:0.5")(model.parameters()) for model in (large, small)]
    torch.testing.assert_close(norms[0], norms[1])
    for left, right in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_skipped_step_under_a_scaler_moves_nothing() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    clipper = Clipper.from_setting("skip_step:3", window=4)
    for gradient in (1.0, 1.1, 0.9, 50.0):
        optimizer.zero_grad()
        before = weight.item()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.unscale_(optimizer)
        clipper([weight])
        if not clipper.can_skip or not clipper.last.skipped:
            scaler.step(optimizer)
        scaler.update()
    assert clipper.last.skipped
    assert weight.item() == before == pytest.approx(-3.0)
    assert clipper.drain_norms() == pytest.approx([1.0, 1.1, 0.9, 50.0])
