"""The probe: norms at frozen weights, the same whoever asks, and a clear answer when there are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import cohort_of, perceptron, regression, workload_of

from tuner.errors import ProbeError, SpecError
from tuner.optimizers import sgd
from tuner.training.cohort import TrialEnded
from tuner.training.engine import LaneId
from tuner.training.initial import initial_model
from tuner.training.loop import train_cohort
from tuner.training.probe import measure_reference, seed_norms
from tuner.training.randomness import data_generator
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload, Workload


def test_norms_are_those_of_the_initial_weights(toy: Callable[..., AnyWorkload]) -> None:
    workload = toy(dropout=0.0)
    reference = measure_reference(workload, (3,), num_batches=5)
    model = initial_model(workload, 3, torch.device("cpu"))
    generator = data_generator(3)
    norms, largest = [], []
    for step in range(5):
        model.zero_grad()
        workload.loss(model, workload.train_batch(step, generator)).backward()
        gradient = torch.cat([each.grad.flatten() for each in model.parameters()])
        norms.append(float(gradient.norm()))
        largest.append(float(gradient.abs().max()))
    assert reference.l2_norm.median == pytest.approx(sorted(norms)[2], rel=1e-6)
    assert reference.l2_norm.max == pytest.approx(max(norms), rel=1e-6)
    assert reference.max_abs.median == pytest.approx(sorted(largest)[2], rel=1e-6)
    assert reference.num_batches == 5


def test_every_seed_gives_the_same_number_of_batches(toy: Callable[..., AnyWorkload]) -> None:
    assert measure_reference(toy(), (0, 1, 2), num_batches=64).num_batches == 66


def test_non_finite_batches_are_left_out(toy: Callable[..., AnyWorkload]) -> None:
    reference = measure_reference(toy(nan_step=1), (0,), num_batches=4)
    assert reference.l2_norm.max < 1e6


def constant(value: float) -> AnyWorkload:
    return Workload.of(
        model=lambda: nn.Linear(1, 1),
        train=[torch.zeros(1, 1)],
        validation=[torch.zeros(1, 1)],
        loss=lambda model, batch: (model(batch) * value).sum(),
        optimizer=sgd(0.1),
    )


def test_tail_spikes_smoothness_and_features_are_measured(toy: Callable[..., AnyWorkload]) -> None:
    workload = toy()
    found = measure_reference(workload, (0, 1, 2))
    assert found.num_batches >= 100
    assert found.spike_ratio == found.l2_norm.max / found.l2_norm.median
    assert found.tail_index is not None and found.tail_index > 0
    assert found.smoothness is not None and found.smoothness.num_points == 24
    assert found.features is not None
    assert (found.features.optimizer, found.features.batch_size) == ("sgd", 8)
    assert measure_reference(workload, (0, 1, 2)) == found


def test_tail_index_needs_a_hundred_norms(toy: Callable[..., AnyWorkload]) -> None:
    assert measure_reference(toy(), (0,), num_batches=99).tail_index is None


def test_tail_index_is_that_of_the_norms() -> None:
    # Batch i has the gradient root(100 / (i + 1)): P(X > x) ~ x^-2.
    workload = workload_of(
        lambda: nn.Linear(1, 1, bias=False),
        train=lambda step, generator: torch.full((1, 1), math.sqrt(100 / (step + 1))),
        validation=[torch.zeros(1, 1)],
        loss=lambda model, batch: model(batch).sum(),
    )
    found = measure_reference(workload, (0,), num_batches=1000)
    assert found.tail_index == pytest.approx(2.0, rel=0.05)
    assert found.spike_ratio == pytest.approx(math.sqrt(500), rel=0.01)
    # A linear loss has the same gradient everywhere: what varies is the batch, not the curvature.
    assert found.smoothness is not None
    assert (found.smoothness.l0, found.smoothness.l1) == (
        pytest.approx(0, abs=0.05),
        pytest.approx(0, abs=0.05),
    )


class Scalar(nn.Module):
    """One weight."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))


def test_smoothness_of_a_known_loss() -> None:
    workload = workload_of(
        lambda: Scalar(2.0),
        train=lambda step, generator: torch.zeros(4),
        validation=[torch.zeros(4)],
        loss=lambda model, batch: model.weight.cosh() - 1,
    )
    found = measure_reference(workload, (0,), num_batches=2).smoothness
    # As in test_smoothness: L0 = L1 = 1, up to the line's fit.
    assert found is not None
    assert 0.25 <= found.l0 <= 1.05
    assert 0.75 <= found.l1 <= 1.05


KINDS: dict[str, dict[str, Any]] = {
    "dropout": {"model": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))},
    "batch norm": {"model": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))},
    "accumulation": {"accumulation_steps": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "float64": {
        "model": lambda: perceptron().double(),
        "train": lambda step, generator: tuple(each.double() for each in regression(step, generator)),
    },
}


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS)
def test_every_kind_of_training_has_a_smoothness(parts: dict[str, Any]) -> None:
    found = measure_reference(workload_of(**parts), (0,), num_batches=4).smoothness
    assert found is not None
    assert found.num_points == 24
    assert found.l0 + found.l1 > 0


def test_smoothness_is_that_of_the_mean_gradient_and_of_full_precision() -> None:
    plain = measure_reference(workload_of(), (0,), num_batches=2).smoothness
    assert measure_reference(workload_of(precision="bf16"), (0,), num_batches=2).smoothness == plain
    # Three times the same batch has the mean gradient of one.
    fixed = regression(0, torch.Generator().manual_seed(0))
    one, three = (
        measure_reference(
            workload_of(train=[fixed], accumulation_steps=count), (0,), num_batches=2
        ).smoothness
        for count in (1, 3)
    )
    assert one is not None and three is not None
    assert three.l0 + three.l1 == pytest.approx(one.l0 + one.l1, rel=0.01)


def test_dropout_masks_are_those_of_the_pair() -> None:
    """The difference of two masks would not shrink with the distance: curvature would be a thousand times too large."""
    network = lambda share: nn.Sequential(nn.Linear(4, 8), nn.Dropout(share), nn.Linear(8, 1))  # noqa: E731
    without, with_masks = (
        measure_reference(workload_of(lambda share=share: network(share)), (0,), num_batches=2).smoothness
        for share in (0.0, 0.5)
    )
    assert without is not None and with_masks is not None
    assert with_masks.l0 + with_masks.l1 < 20 * (without.l0 + without.l1)


class OnlyThere(nn.Linear):
    """A model that refuses weights other than its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not hasattr(self, "start"):
            self.start = self.weight.detach().clone()
        if not torch.equal(self.weight, self.start):
            raise RuntimeError("not here")
        return super().forward(inputs)


@pytest.mark.parametrize(
    "parts",
    [
        {"model": lambda: OnlyThere(4, 1)},
        {
            "model": lambda: perceptron().bfloat16(),
            "train": lambda step, generator: tuple(each.bfloat16() for each in regression(step, generator)),
        },
    ],
    ids=["raises elsewhere", "half-precision weights"],
)
def test_smoothness_that_can_not_be_had_is_none(parts: dict[str, Any]) -> None:
    found = measure_reference(workload_of(**parts), (0,), num_batches=4)
    assert found.smoothness is None
    assert found.l2_norm.median > 0


class Counting(nn.Module):
    """Keeps one buffer that it changes in place and one that it replaces; both change its output."""

    def __init__(self, start: float = 1.0, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor
        self.layer = nn.Linear(4, 1)
        self.register_buffer("changed", torch.full((1,), start))
        self.register_buffer("replaced", torch.full((1,), start))

    def forward(self, inputs: Tensor) -> Tensor:
        self.changed.mul_(self.factor)
        self.replaced = self.replaced * self.factor
        return self.layer(inputs) * self.changed + self.replaced


@pytest.mark.parametrize("make", [Counting, KINDS["batch norm"]["model"]], ids=["buffers", "batch norm"])
def test_module_that_is_handed_out_every_time_stays_as_it_is(make: Callable[[], nn.Module]) -> None:
    shared = make()
    before = {name: each.clone() for name, each in shared.state_dict().items()}
    measure_reference(workload_of(lambda: shared), (0, 1), num_batches=4)
    after = shared.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert all(each.grad is None for each in shared.parameters())


def test_every_gradient_of_the_walk_begins_with_the_same_buffers() -> None:
    counting, still = (
        measure_reference(workload_of(lambda given=given: Counting(*given)), (0,), num_batches=2).smoothness
        for given in ((1.0, 0.5), (0.5, 1.0))
    )
    assert counting is not None
    assert counting == still


def weights_after(workload: AnyWorkload) -> list[Tensor]:
    """The weights of every lane of a short cohort, one trained after the other."""
    cohort = cohort_of("none", "global_norm:0.1")
    engine = SoloEngine(cohort, workload)
    lanes = [LaneId(trial.id, seed) for trial in cohort.trials for seed in cohort.seeds]
    for _ in engine.advance(lanes, 12):
        pass
    return [engine._lanes[lane].batch.weights for lane in lanes]


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS)
def test_training_after_the_probe_is_the_one_without(parts: dict[str, Any]) -> None:
    if "train" in parts:
        parts = parts | {"validation": [parts["train"](0, torch.Generator().manual_seed(1))]}
    plain, probed, same = workload_of(**parts), workload_of(**parts), workload_of(**parts)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    measure_reference(probed, (0, 1), num_batches=4)
    assert torch.equal(torch.get_rng_state(), before)
    expected = weights_after(plain)
    assert all(map(torch.equal, weights_after(probed), expected))
    weights_after(same)
    measure_reference(same, (0, 1), num_batches=4)
    assert all(map(torch.equal, weights_after(same), expected))


def test_values_after_the_probe_are_those_without(toy: Callable[..., AnyWorkload]) -> None:
    def values(workload: AnyWorkload) -> list[object]:
        events = train_cohort(cohort_of("none", "value:0.1"), workload)
        return [
            (event.trial_id, lane.seed, lane.value, lane.norms)
            for event in events
            if isinstance(event, TrialEnded)
            for lane in event.lanes
        ]

    workload = toy(batch_norm=True)
    measure_reference(workload, (0, 1), num_batches=4)
    assert values(workload) == values(toy(batch_norm=True))


def test_fp16_that_overflows_is_tried_with_smaller_scales() -> None:
    """Gradients of 100 are too large for fp16 at the first loss scale, 65536; training would back off."""
    parts: dict[str, Any] = {
        "train": lambda step, generator: tuple(100.0 * each for each in regression(step, generator)),
    }
    half = measure_reference(workload_of(precision="fp16", **parts), (0,), num_batches=4)
    full = measure_reference(workload_of(**parts), (0,), num_batches=4)
    assert half.l2_norm.median == pytest.approx(full.l2_norm.median, rel=0.02)


def test_loss_that_is_nan_from_the_start_is_told() -> None:
    with pytest.raises(ProbeError) as caught:
        measure_reference(constant(float("nan")), (0, 1), num_batches=4)
    assert caught.value.code == "probe_failed"
    assert str(caught.value) == (
        "the gradient at the initial weights is not finite in any of 4 batches, nor is the loss in 4 of them: the loss "
        "is nan in the first batch; look for NaN and infinities in the first training batches, and for log(0) or 0 / 0 "
        "in the loss"
    )


@pytest.mark.parametrize(("precision", "remedy"), [("fp32", "backward pass"), ("fp16", "'bf16' or 'fp32'")])
def test_gradient_that_is_not_finite_names_its_tensors(precision: str, remedy: str) -> None:
    # The root's slope at 0 is infinite, the loss is 0.
    workload = workload_of(
        lambda: nn.Linear(1, 1),
        train=[torch.ones(1, 1)],
        validation=[torch.ones(1, 1)],
        loss=lambda model, batch: (
            (model.weight - model.weight.detach()).square().sum().sqrt() + 0 * model.bias.sum()
        ),
        precision=precision,
    )
    with pytest.raises(ProbeError) as caught:
        measure_reference(workload, (0,), num_batches=4)
    assert "although the loss is 0 in the first batch: not finite in weight;" in str(caught.value)
    assert str(caught.value).endswith(remedy)


def test_gradient_that_is_zero_names_its_tensors() -> None:
    model = lambda: nn.ModuleDict({"used": nn.Linear(1, 1), "spare": nn.Linear(1, 1)})  # noqa: E731
    workload = workload_of(
        model,
        train=[torch.ones(1, 1)],
        validation=[torch.ones(1, 1)],
        loss=lambda model, batch: (model["used"](batch) * 0).sum() + 7,
    )
    with pytest.raises(ProbeError) as caught:
        measure_reference(workload, (0,), num_batches=4)
    assert str(caught.value).startswith(
        "the median gradient norm at the initial weights is 0: the gradient is 0 in 4 of 4 batches; the loss is 7 in "
        "the first batch, where it does not reach spare.weight, spare.bias and it is 0 in used.weight, used.bias; "
        "look for detach()"
    )


def test_gradient_that_is_mostly_zero_says_how_often() -> None:
    workload = workload_of(
        lambda: nn.Linear(1, 1),
        train=lambda step, generator: torch.full((1, 1), float(step % 3 == 0)),
        validation=[torch.ones(1, 1)],
        loss=lambda model, batch: (model(batch) * batch).sum(),
    )
    with pytest.raises(
        ProbeError, match=r"0 in 4 of 6 batches; the loss is \S+ in the first batch, where it is not 0;"
    ):
        measure_reference(workload, (0,), num_batches=6)


def test_many_tensors_are_not_all_named() -> None:
    workload = workload_of(
        lambda: nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)]),
        train=[torch.zeros(1, 1)],
        validation=[torch.zeros(1, 1)],
        loss=lambda model, batch: (model(batch) * 0).sum(),
    )
    with pytest.raises(ProbeError, match=r"it is 0 in 0\.weight, 0\.bias, 1\.weight, 1\.bias and 6 more;"):
        measure_reference(workload, (0,), num_batches=2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: model(batch).detach().sum() + 2,
        lambda model, batch: torch.tensor(2.0),
    ],
    ids=["detached", "constant"],
)
def test_loss_that_depends_on_nothing_is_told(loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
    workload = workload_of(
        lambda: nn.Linear(1, 1), train=[torch.zeros(1, 1)], validation=[torch.zeros(1, 1)], loss=loss
    )
    with pytest.raises(ProbeError) as caught:
        measure_reference(workload, (0,), num_batches=2)
    assert "depends on none of the 2 trainable parameter tensors (weight, ...)" in str(caught.value)
    assert str(caught.value).endswith(
        "compute it from the model's output without detach(), item(), argmax or torch.no_grad()"
    )


def test_bounds_are_told(toy: Callable[..., AnyWorkload]) -> None:
    with pytest.raises(SpecError, match="seeds must name at least one training seed"):
        measure_reference(toy(), ())
    with pytest.raises(SpecError, match="num_batches must be >= 1, got 0"):
        measure_reference(toy(), (0,), num_batches=0)


def test_every_seed_is_sketched_by_itself(toy: Callable[..., AnyWorkload]) -> None:
    both = measure_reference(toy(), (0, 1), num_batches=20)
    alone = [measure_reference(toy(), (seed,), num_batches=10) for seed in (0, 1)]
    assert [each.l2_norm for each in both.by_seed] == [each.l2_norm for each in alone]
    assert [each.max_abs for each in both.by_seed] == [each.max_abs for each in alone]
    assert both.by_seed[0] != both.by_seed[1]


def test_seed_without_a_finite_gradient_is_no_sketch() -> None:
    seen = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    nothing = (torch.tensor([torch.nan]), torch.tensor([torch.inf]))
    assert [each.l2_norm.max for each in seed_norms([seen, nothing])] == [2.0]
