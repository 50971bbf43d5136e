"""A workload's loss and gradient for all lanes: equal to the plain module's, recorded once per shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import perceptron, regression, squared, workload_of

from tuner.lanes import row_of, trainable
from tuner.training import lane_program
from tuner.training.initial import initial_model
from tuner.training.lane_program import MAX_SHAPES, LanePrograms
from tuner.training.not_batchable import NotBatchableError
from tuner.training.randomness import data_generator
from tuner.training.stacking import Stacked, single, stack
from tuner.training.streams import SeedStreams
from tuner.workloads import AnyWorkload

CPU = torch.device("cpu")
SEEDS, NUM_TRIALS = (0, 1), 3


class Bench:
    """Programs of a workload, and lanes that all have other weights."""

    def __init__(self, workload: AnyWorkload) -> None:
        self.workload = workload
        self.models = [initial_model(workload, seed, CPU) for seed in SEEDS]
        self.programs = LanePrograms(workload, self.models, precision="fp32")
        rows = torch.stack([row_of(trainable(model)) for model in self.models]).repeat_interleave(
            NUM_TRIALS, 0
        )
        self.weights = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))

    def batch(self, num_examples: int = 8) -> Stacked:
        return stack([regression(0, data_generator(seed), num_examples) for seed in SEEDS])

    def run(self, batch: Stacked, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        streams = SeedStreams(SEEDS, "training", CPU)
        return self.programs.losses_and_gradients(self.weights, {}, batch, streams, scale)

    def plain(self, batch: Stacked, lane: int) -> tuple[Tensor, Tensor]:
        model = self.models[lane // NUM_TRIALS]
        for name, each in self.programs.layout.views(self.weights).items():
            trainable(model)[name].data = each[lane].clone()
        given = batch.rebuild([each[lane // NUM_TRIALS] for each in batch.tensors])
        loss = self.workload.loss(model, given)
        return loss.detach(), row_of(
            dict(enumerate(torch.autograd.grad(loss, list(trainable(model).values()))))  # type: ignore[arg-type]
        )


def test_every_lane_has_the_loss_and_gradient_of_its_plain_module() -> None:
    bench = Bench(workload_of())
    batch = bench.batch()
    losses, grads = bench.run(batch)
    assert not losses.requires_grad and not grads.requires_grad
    for lane in range(len(SEEDS) * NUM_TRIALS):
        loss, grad = bench.plain(batch, lane)
        torch.testing.assert_close(losses[lane], loss)
        torch.testing.assert_close(grads[lane], grad)


def test_gradients_are_scaled_per_lane_and_losses_are_not() -> None:
    bench = Bench(workload_of())
    batch, scale = bench.batch(), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    losses, grads = bench.run(batch)
    same, scaled = bench.run(batch, scale)
    torch.testing.assert_close(same, losses)
    torch.testing.assert_close(scaled, grads * scale.unsqueeze(1))


def test_program_is_recorded_once_per_shape_and_number_of_lanes() -> None:
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return squared(model, batch)

    bench = Bench(workload_of(loss=loss))
    for num_examples in (8, 8, 5, 8, 5):
        bench.run(bench.batch(num_examples))
    assert calls == 2
    bench.weights = bench.weights[: len(SEEDS)]
    bench.run(bench.batch())
    assert calls == 3


def test_too_many_shapes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_program, "MAX_SHAPES", 2)
    bench = Bench(workload_of())
    for num_examples in (4, 5):
        bench.run(bench.batch(num_examples))
    with pytest.raises(
        NotBatchableError, match="the batches have more than 2 different shapes: pad them to a few"
    ):
        bench.run(bench.batch(6))
    bench.run(bench.batch(4))
    assert MAX_SHAPES == 32


def test_values_are_those_of_evaluation_mode_for_every_lane() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    bench = Bench(workload_of(model))
    batch = regression(0, torch.Generator().manual_seed(1))
    found = bench.programs.values(
        "loss", squared, bench.weights, {}, single(batch), SeedStreams(SEEDS, "validation", CPU)
    )
    assert found.dtype == torch.float64
    for lane in range(6):
        plain = bench.models[lane // NUM_TRIALS].eval()
        for name, each in bench.programs.layout.views(bench.weights).items():
            trainable(plain)[name].data = each[lane].clone()
        assert float(found[lane]) == pytest.approx(squared(plain, batch).item(), rel=1e-5)


LOSSES = {
    "mse": nn.functional.mse_loss,
    "huber": nn.functional.huber_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
    "l1": nn.functional.l1_loss,
    "mse-sum": lambda one, other: nn.functional.mse_loss(one, other, reduction="sum"),
    "mse-none": lambda one, other: nn.functional.mse_loss(one, other, reduction="none").mean(),
    "huber-delta": lambda one, other: nn.functional.huber_loss(one, other, delta=0.3),
    "smooth_l1-beta": lambda one, other: nn.functional.smooth_l1_loss(one, other, beta=0.3),
    "logistic": lambda one, other: nn.functional.binary_cross_entropy_with_logits(one, other.sigmoid()),
    "poisson": nn.functional.poisson_nll_loss,
    "soft-margin": lambda one, other: nn.functional.soft_margin_loss(one, other.sign()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torch_batch(name: str) -> None:
    function: Callable[[Tensor, Tensor], Tensor] = LOSSES[name]
    bench = Bench(workload_of(loss=lambda model, batch: function(model(batch[0]), batch[1])))
    batch = bench.batch()
    losses, grads = bench.run(batch)
    for lane in range(6):
        loss, grad = bench.plain(batch, lane)
        torch.testing.assert_close(losses[lane], loss)
        torch.testing.assert_close(grads[lane], grad)


def test_recording_again_gives_the_same_program() -> None:
    bench = Bench(workload_of())
    bench.run(bench.batch())
    assert bench.programs.is_reproducible(bench.weights, {}, bench.batch())


def test_recording_leaves_the_callers_generator_and_model_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bench = Bench(workload_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))))
    kept = {name: each.clone() for name, each in bench.models[0].state_dict().items()}
    bench.run(bench.batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(each, kept[name]) for name, each in bench.models[0].state_dict().items())


def test_loss_of_the_wrong_shape_is_told() -> None:
    bench = Bench(workload_of(perceptron, loss=lambda model, batch: model(batch[0]) - batch[1]))
    with pytest.raises(Exception, match=r"the loss must be one number, got .*\(8, 1\): take the mean"):
        bench.run(bench.batch())
