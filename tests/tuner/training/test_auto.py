"""What stands in the way of a batch costs speed, never the study: the outcome, and the sentence that tells it."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from toys import (
    Outcome,
    advanced,
    assert_close,
    assert_same_bits,
    cohort_of,
    lanes_of,
    outcomes,
    perceptron,
    regression,
    squared,
    toy,
    trained,
    workload_of,
)

from tuner.errors import LaneError, UnsupportedModelError
from tuner.optimizers import sgd
from tuner.spec import Lanes
from tuner.training import capacity
from tuner.training.auto import AskPath, AutoEngine
from tuner.training.cohort import Cohort
from tuner.training.engine import EngineState, LaneId
from tuner.training.lane_program import MAX_SHAPES
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload

COHORT = cohort_of("none", "global_norm:0.5", "value:0.1", rung_steps=(8, 24), lanes=64)
Batch = tuple[Tensor, Tensor]


def engine_of(workload: AnyWorkload, cohort: Cohort = COHORT) -> AutoEngine:
    return AutoEngine(cohort, workload)


def assert_trains_solo(make: Callable[[], AnyWorkload], *parts: str, cohort: Cohort = COHORT) -> None:
    """It trains, one lane at a time, with the results of the solo engine, and the reason holds these parts."""
    engine = engine_of(make(), cohort)
    assert engine.choice.path == "solo"
    assert engine.choice.num_lanes == 1
    for part in parts:
        assert part in engine.choice.reason
    assert_same_bits(trained(engine, cohort), trained(SoloEngine(cohort, make()), cohort))


def assert_trains_batched(
    make: Callable[[], AnyWorkload], cohort: Cohort = COHORT, tolerance: float = 1e-5
) -> AutoEngine:
    """It trains as one batch, with the results of the solo engine."""
    engine = engine_of(make(), cohort)
    assert engine.choice.path == "lanes", engine.choice.reason
    found = trained(engine, cohort)
    assert engine.choice.path == "lanes", engine.choice.reason
    assert_close(found, trained(SoloEngine(cohort, make()), cohort), tolerance=tolerance)
    return engine


class Forward(nn.Module):
    """A perceptron with something of its own between the layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.between(self.first(inputs)))


def branching(hidden: Tensor) -> Tensor:
    if hidden.mean() > 0:
        return hidden
    return 2 * hidden


def masked(hidden: Tensor) -> Tensor:
    return hidden * (1 + hidden[hidden > 0].sum().tanh())


def assigned(hidden: Tensor) -> Tensor:
    hidden = hidden * 1
    hidden[hidden.detach() < 0] = 0.0
    return hidden


def tagged(hidden: Tensor) -> Tensor:
    return hidden * float(hidden.detach().abs().max())


def unique(hidden: Tensor) -> Tensor:
    return hidden / len(hidden.detach().round().unique())


def as_numpy(hidden: Tensor) -> Tensor:
    return hidden * torch.from_numpy(hidden.detach().numpy()).sign()


READS_A_VALUE = "reads a tensor's value with .item() or float(): keep it a tensor"


def item_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss = squared(model, batch)
    return loss * (1 + 0 * loss.item())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"loss": item_loss}, READS_A_VALUE),
        ({"model": lambda: Forward(tagged)}, READS_A_VALUE),
        (
            {"model": lambda: Forward(branching)},
            "branches on a tensor's value: use torch.where instead of if",
        ),
        (
            {"model": lambda: Forward(masked)},
            "selects by a mask, whose result has no fixed shape: use torch.where",
        ),
        ({"model": lambda: Forward(unique)}, "depends on a tensor's values"),
    ],
    ids=["item", "float", "branch", "mask", "unique"],
)
def test_code_that_looks_at_values_trains_solo(parts: dict[str, Any], sentence: str) -> None:
    assert_trains_solo(lambda: workload_of(**parts), sentence)


def gathered(hidden: Tensor) -> Tensor:
    order = torch.tensor([3, 1, 2, 0, 7, 6, 5, 4])
    return hidden[:, order] + hidden[torch.arange(len(hidden))].gather(1, order.expand_as(hidden))


def test_indexing_by_whole_numbers_batches() -> None:
    assert_trains_batched(lambda: workload_of(lambda: Forward(gathered)))


def test_indexing_by_the_batch_batches() -> None:
    # The usual way to write a policy gradient, or a cross entropy by hand.
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        chosen = (targets.squeeze(1) > 0).long()
        return -model(inputs).log_softmax(1)[torch.arange(len(inputs)), chosen].mean()

    assert_trains_batched(lambda: workload_of(lambda: nn.Linear(4, 2), loss=loss))


@pytest.mark.parametrize("between", [assigned, as_numpy], ids=lambda function: function.__name__)
def test_other_code_without_a_batched_form_trains_right_whichever_way(
    between: Callable[[Tensor], Tensor],
) -> None:
    engine = engine_of(workload_of(lambda: Forward(between)))
    assert len(engine.choice.reason) > 10
    expected = trained(SoloEngine(COHORT, workload_of(lambda: Forward(between))), COHORT)
    assert_close(trained(engine, COHORT), expected)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda model, batch: (model(batch[0]) - batch[1]).square(), r"a tensor of shape \(8, 1\)|\(8, 1\)"),
        (lambda model, batch: 0.5, "float"),
    ],
    ids=["vector", "number"],
)
def test_loss_that_is_no_scalar_is_refused(loss: Callable[..., Any], got: str) -> None:
    engine = None
    with pytest.raises(
        UnsupportedModelError, match=f"the loss must be one number, got ({got}): take the mean"
    ):
        engine = engine_of(workload_of(loss=loss))
        advanced(engine, lanes_of(COHORT), 1)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs).double())


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table(inputs.abs().long().clamp(max=4)).sum((1, 2))[:, None]


def frozen() -> nn.Module:
    return nn.Linear(4, 1).requires_grad_(False)


@pytest.mark.parametrize("lanes", ["auto", "solo", 64])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            Mixed,
            "parameter 'second.weight' is torch.float64 where others are torch.float32: convert the model to one",
        ),
        (Sparse, r"module 'table' \(Embedding\) has sparse gradients: build it with sparse=False"),
        (frozen, "the model has no parameter that requires a gradient: nothing can be trained"),
    ],
    ids=["mixed-types", "sparse", "frozen"],
)
def test_model_that_no_engine_can_train_is_refused(
    model: Callable[[], nn.Module], sentence: str, lanes: Lanes
) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        engine_of(workload_of(model), dataclasses.replace(COHORT, lanes=lanes))


def test_custom_optimizer_trains_solo() -> None:
    def make() -> AnyWorkload:
        return workload_of(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))

    assert_trains_solo(make, "builds a PyTorch optimizer, which knows one lane only", "tuner.optimizers")


def test_asked_for_solo_is_solo() -> None:
    for lanes in ("solo", 1):
        cohort = dataclasses.replace(COHORT, lanes=lanes)
        assert_trains_solo(workload_of, "the study asks for one lane at a time", cohort=cohort)


class Counting:
    """A loss whose weight depends on how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        return squared(model, batch) * (1.0 + 1.0 / self.calls)


def drawing(model: nn.Module, batch: Batch) -> Tensor:
    return squared(model, batch) * random.random()


def captured_constant() -> Callable[[nn.Module, Batch], Tensor]:
    history: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        history.append(torch.tensor(float(len(history) + 1)))
        return squared(model, batch) * history[-1]

    return loss


@pytest.mark.parametrize(
    "loss", [Counting(), drawing, captured_constant()], ids=["counter", "random", "new-tensor"]
)
def test_loss_that_depends_on_something_else_trains_solo(loss: Callable[..., Tensor]) -> None:
    engine = engine_of(workload_of(loss=loss))
    assert engine.choice.path == "solo"
    assert "depends on something besides weights, batch and torch's random numbers" in engine.choice.reason
    assert "give it to the batch" in engine.choice.reason


def test_tensor_that_the_loss_changes_in_place_is_noticed() -> None:
    def make() -> AnyWorkload:
        step = torch.zeros(())

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            step.add_(1)
            return squared(model, batch) * (1 + 1 / step)

        return workload_of(loss=loss)

    engine = engine_of(make())
    assert engine.choice.path == "solo", "a counter in a captured tensor was shared by all lanes"


def test_captured_tensor_that_never_changes_is_a_constant() -> None:
    weight = torch.tensor([0.5, 1.5, 1.0, 2.0, 0.1, 0.2, 0.3, 1.1])[:, None]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (weight * (model(batch[0]) - batch[1]).square()).mean()

    validation = [regression(0, torch.Generator().manual_seed(1))]
    assert_trains_batched(lambda: workload_of(loss=loss, validation=validation))


def seed_shaped(step: int, generator: torch.Generator) -> Batch:
    return regression(step, generator, 8 + generator.initial_seed() % 2)


def test_batches_whose_shapes_differ_between_seeds_train_solo() -> None:
    cohort = dataclasses.replace(COHORT, seeds=(0, 1, 2, 3, 4))
    assert len({torch.Generator().manual_seed(s).initial_seed() for s in (0, 1)}) == 2
    assert_trains_solo(
        lambda: workload_of(train=seed_shaped),
        "different shapes or plain values to different seeds",
        "(8, 4), (8, 1)",
        "pad or drop the odd ones",
        cohort=cohort,
    )


def test_a_few_shapes_over_the_steps_are_a_program_each() -> None:
    def train(step: int, generator: torch.Generator) -> Batch:
        return regression(step, generator, 4 + step % 5)

    assert_trains_batched(lambda: workload_of(train=train))


def growing(step: int, generator: torch.Generator) -> Batch:
    return regression(step, generator, 4 + step)


@pytest.mark.parametrize("lanes", [64, 2])
def test_too_many_shapes_change_to_solo_on_the_way(lanes: int) -> None:
    cohort = cohort_of("none", "global_norm:0.5", "zclip:2", rung_steps=(8, 60), lanes=lanes)
    engine = engine_of(workload_of(train=growing), cohort)
    assert engine.choice.path == "lanes"
    told = [*advanced(engine, lanes_of(cohort), 8), *advanced(engine, lanes_of(cohort), 60)]
    assert engine.choice.path == "solo"
    assert engine.choice.reason.startswith("from step ")
    assert (
        f"the batches have more than {MAX_SHAPES} different shapes: pad them to a few" in engine.choice.reason
    )
    assert sum(each.lane_steps for each in told) == len(lanes_of(cohort)) * 60
    expected = trained(SoloEngine(cohort, workload_of(train=growing)), cohort)
    assert_close(outcomes(engine, lanes_of(cohort)), expected)
    assert all(engine.seconds(lane) > 0 for lane in lanes_of(cohort))


def test_change_to_solo_keeps_dropout_statistics_followers_and_retired_trials() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    cohort = cohort_of(
        "none",
        "global_norm:0.5",
        "value:0.1",
        "global_norm:1e9",
        rung_steps=(8, 60),
        lanes=64,
        largest_norm=10.0,
    )
    engine = engine_of(workload_of(model, train=growing), cohort)
    advanced(engine, lanes_of(cohort), 8)
    engine.retire(lanes_of(cohort, "value:0.1"))
    left = lanes_of(cohort, "none", "global_norm:0.5", "global_norm:1e9")
    found = trained(engine, cohort, 60, lanes=left)
    assert engine.choice.path == "solo"
    assert_close(found, trained(SoloEngine(cohort, workload_of(model, train=growing)), cohort))


def test_change_to_solo_keeps_diverged_lanes_as_they_are() -> None:
    def train(step: int, generator: torch.Generator) -> Batch:
        inputs, targets = growing(step, generator)
        return (inputs * torch.nan if step == 5 else inputs), targets

    cohort = cohort_of("none", "value:0.1", rung_steps=(50,), lanes=64)
    engine = engine_of(workload_of(train=train), cohort)
    found = trained(engine, cohort)
    assert {each.record.divergence_step for each in found.values()} == {5}
    assert_close(found, trained(SoloEngine(cohort, workload_of(train=train)), cohort))


class FailsLater:
    """A metric that can't be batched any more once it was recorded so many times."""

    def __init__(self, num_recordings: int) -> None:
        self.left = num_recordings

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = squared(model, batch)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self.left -= 1
            if self.left < 0:
                return loss * (1 + 0 * loss.item())
        return loss


def test_change_to_solo_at_an_evaluation_goes_on_where_it_was() -> None:
    cohort = cohort_of(
        "none",
        "value:0.1",
        "value:0.2",
        "value:0.3",
        "value:1e9",
        rung_steps=(8, 24),
        lanes=64,
        largest_norm=10.0,
    )
    engine = engine_of(workload_of(metric=FailsLater(1)), cohort)
    advanced(engine, lanes_of(cohort), 8)
    engine.evaluate(lanes_of(cohort))
    engine.retire(lanes_of(cohort, "value:0.1", "value:0.2", "value:0.3"))
    left = lanes_of(cohort, "none", "value:1e9")
    # Fewer lanes are another program: it is recorded at the next evaluation, and fails.
    advanced(engine, left, 17)
    engine.evaluate(left)
    assert engine.choice.path == "solo"
    found = trained(engine, cohort, 24, lanes=left)
    plain = SoloEngine(cohort, workload_of(metric=squared))
    assert_close(found, trained(plain, cohort, 24))


def test_plain_values_that_change_per_step_are_a_program_each() -> None:
    def train(step: int, generator: torch.Generator) -> dict[str, Any]:
        inputs, targets = regression(step, generator)
        return {"inputs": inputs, "targets": targets, "power": 1 + step % 3, "name": "toy"}

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return (model(batch["inputs"]) - batch["targets"]).abs().pow(batch["power"]).mean()

    validation = [train(0, torch.Generator().manual_seed(1))]
    assert_trains_batched(lambda: workload_of(train=train, loss=loss, validation=validation))


class Named(NamedTuple):
    inputs: Tensor
    rest: dict[str, list[Tensor]]


def test_nested_batches_keep_their_types() -> None:
    def train(step: int, generator: torch.Generator) -> Named:
        inputs, targets = regression(step, generator)
        return Named(inputs, {"targets": [targets, targets]})

    def loss(model: nn.Module, batch: Named) -> Tensor:
        assert isinstance(batch, Named)
        return (model(batch.inputs) - batch.rest["targets"][1]).square().mean()

    validation = [train(0, torch.Generator().manual_seed(1))]
    assert_trains_batched(lambda: workload_of(train=train, loss=loss, validation=validation))


class Unknown:
    """A batch that is no nesting of tensors."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)


def test_batch_of_an_unknown_class_trains_solo() -> None:
    def train(step: int, generator: torch.Generator) -> Unknown:
        return Unknown(*regression(step, generator))

    def loss(model: nn.Module, batch: Unknown) -> Tensor:
        return squared(model, (batch.inputs, batch.targets))

    validation = [train(0, torch.Generator().manual_seed(1))]
    assert_trains_solo(lambda: workload_of(train=train, loss=loss, validation=validation))


def test_ordered_and_default_dictionaries_work() -> None:
    def train(step: int, generator: torch.Generator) -> collections.OrderedDict[str, Tensor]:
        inputs, targets = regression(step, generator)
        return collections.OrderedDict(inputs=inputs, targets=targets)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return squared(model, (batch["inputs"], batch["targets"]))

    validation = [train(0, torch.Generator().manual_seed(1))]
    assert_trains_batched(lambda: workload_of(train=train, loss=loss, validation=validation))


def test_shared_tensor_that_the_loss_changes_trains_right() -> None:
    # The batch is a seed's, so writing the lanes' predictions into it has no batched form.
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        targets = targets.clone()
        targets -= model(inputs)
        return targets.square().mean()

    assert_trains_solo(lambda: workload_of(loss=loss), "changes a tensor in place that lanes share")


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        packed = pack_padded_sequence(inputs.unflatten(1, (2, 2)), torch.tensor([2, 1] * 4), True, False)
        _, (hidden, _) = self.lstm(packed)
        return self.head(hidden[-1])


def test_packed_sequence_trains_solo() -> None:
    cohort = dataclasses.replace(COHORT, rung_steps=(8,))
    validation = [regression(0, torch.Generator().manual_seed(1))]
    assert_trains_solo(lambda: workload_of(Packed, validation=validation), cohort=cohort)


def test_complex_eigenvalues_without_a_batched_form_still_train() -> None:
    def between(hidden: Tensor) -> Tensor:
        return hidden * (1 + torch.linalg.matrix_exp(hidden.T @ hidden * 0.01).diagonal().mean())

    expected = trained(SoloEngine(COHORT, workload_of(lambda: Forward(between))), COHORT)
    engine = engine_of(workload_of(lambda: Forward(between)))
    assert_close(trained(engine, COHORT), expected)


class Tokens(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, **options), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.table(inputs).mean(1))


def tokens(step: int, generator: torch.Generator) -> Batch:
    drawn = torch.randint(0, 6, (8, 5), generator=generator)
    return drawn, drawn.float().mean(1, keepdim=True)


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 2}, {"padding_idx": -1}, {"scale_grad_by_freq": True}], ids=str
)
def test_embedding_is_right_in_every_lane(options: dict[str, Any]) -> None:
    def make() -> AnyWorkload:
        return workload_of(
            lambda: Tokens(**options), train=tokens, validation=[tokens(0, torch.Generator().manual_seed(1))]
        )

    engine = engine_of(make())
    assert_close(trained(engine, COHORT), trained(SoloEngine(COHORT, make()), COHORT))


class PartlyFrozen(nn.Module):
    """Frozen weights drawn per seed, a frozen constant that all seeds share, and trainable ones."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = nn.Linear(4, 8).requires_grad_(False)
        self.shared = nn.Parameter(torch.linspace(-1, 1, 8), requires_grad=False)
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drawn(inputs).tanh() * self.shared)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).tanh()))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class ConstantBuffers(nn.Module):
    """A mask, and positions that are not saved: the same for every seed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.register_buffer("mask", torch.tensor([1.0, 0.0] * 4))
        self.register_buffer("position", torch.arange(8.0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs).tanh() * self.mask + 0.01 * self.position)


class DrawnBuffer(nn.Module):
    """Random features: a constant that every seed draws for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randn(4, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head((inputs @ self.drawn).tanh())


class ChangingBuffers(nn.Module):
    """A step count and a moving average that the forward pass writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).tanh()
        if self.training:
            self.steps += 1
            self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return self.second(hidden - self.mean)


class ReplacedBuffer(nn.Module):
    """A moving average that the forward pass replaces by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).tanh()
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.second(hidden - self.mean)


def test_buffer_that_is_replaced_trains_right_whichever_way() -> None:
    engine = engine_of(workload_of(ReplacedBuffer))
    expected = trained(SoloEngine(COHORT, workload_of(ReplacedBuffer)), COHORT)
    assert_close(trained(engine, COHORT), expected)


@pytest.mark.parametrize(
    "model",
    [PartlyFrozen, Tied, Unused, ConstantBuffers, DrawnBuffer, ChangingBuffers],
    ids=lambda model: model.__name__,
)
def test_unusual_parameters_and_buffers_are_right_in_every_lane(model: Callable[[], nn.Module]) -> None:
    assert_trains_batched(lambda: workload_of(model))


def test_double_precision_model_stays_in_double_precision() -> None:
    def train(step: int, generator: torch.Generator) -> Batch:
        inputs, targets = regression(step, generator)
        return inputs.double(), targets.double()

    validation = [train(0, torch.Generator().manual_seed(1))]
    assert_trains_batched(
        lambda: workload_of(lambda: perceptron().double(), train=train, validation=validation),
        tolerance=1e-12,
    )


@pytest.mark.parametrize(
    "loss",
    [nn.functional.mse_loss, nn.functional.huber_loss, nn.functional.smooth_l1_loss, nn.functional.l1_loss],
)
def test_losses_of_torch_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert_trains_batched(lambda: workload_of(loss=lambda model, batch: loss(model(batch[0]), batch[1])))


@pytest.mark.parametrize("raises", ["loss", "model", "train"])
def test_exception_of_the_workload_is_raised_as_a_lane_error(raises: str) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("broken")

    parts: dict[str, Any] = {raises: broken} if raises != "model" else {"model": lambda: Forward(broken)}
    engine = engine_of(workload_of(**parts))
    with pytest.raises(LaneError, match="trial none with seed 0 failed at step 0: ZeroDivisionError: broken"):
        advanced(engine, lanes_of(COHORT), 1)


def test_exception_at_a_later_step_names_it() -> None:
    engine = engine_of(toy(raise_step=6))
    with pytest.raises(LaneError, match="failed at step 6: RuntimeError: broken data"):
        advanced(engine, lanes_of(COHORT), 8)


def test_number_of_lanes_is_the_studys() -> None:
    cohort = dataclasses.replace(COHORT, lanes=4)
    choice = engine_of(workload_of(), cohort).choice
    assert (choice.path, choice.num_lanes, choice.reason) == ("lanes", 4, "the study sets the number")
    assert choice.lanes_per_second is choice.solo_per_second is None


def with_rates(
    monkeypatch: pytest.MonkeyPatch, *, batched: float, solo: float, ask_path: AskPath | None = None
) -> AutoEngine:
    """An engine that measured these lane-steps per second."""

    def measure(step: Callable[[], object], *, num_lanes: int, device: torch.device) -> float:
        step()
        return solo if num_lanes == 1 else batched

    monkeypatch.setattr("tuner.training.auto.measure_rate", measure)
    return AutoEngine(dataclasses.replace(COHORT, lanes="auto"), workload_of(), ask_path=ask_path)


def test_faster_batch_is_told_with_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = with_rates(monkeypatch, batched=3000.0, solo=1000.0).choice
    assert (choice.path, choice.num_lanes) == ("lanes", 6)
    assert choice.reason == "3.0 times as fast as one lane at a time"
    assert (choice.lanes_per_second, choice.solo_per_second) == (3000.0, 1000.0)


def test_slower_batch_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_rates(monkeypatch, batched=500.0, solo=1000.0)
    assert (engine.choice.path, engine.choice.num_lanes) == ("solo", 1)
    assert engine.choice.reason == "one lane at a time is 2.0 times as fast"
    assert (engine.choice.lanes_per_second, engine.choice.solo_per_second) == (500.0, 1000.0)
    assert isinstance(engine._engine, SoloEngine)


def test_path_of_the_cohorts_other_parts_is_taken_without_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "as it was measured for the cohort's other parts"
    choice = with_rates(monkeypatch, batched=500.0, solo=1000.0, ask_path=lambda: "lanes").choice
    assert (choice.path, choice.num_lanes, choice.reason) == ("lanes", 6, reason)
    assert (choice.lanes_per_second, choice.solo_per_second) == (500.0, None)
    choice = with_rates(monkeypatch, batched=3000.0, solo=1000.0, ask_path=lambda: "solo").choice
    assert (choice.path, choice.num_lanes, choice.reason) == ("solo", 1, reason)
    assert choice.lanes_per_second is choice.solo_per_second is None


def test_part_that_is_told_no_path_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = with_rates(monkeypatch, batched=3000.0, solo=1000.0, ask_path=lambda: None).choice
    assert choice.reason == "3.0 times as fast as one lane at a time"


@pytest.mark.parametrize("lanes", [4, "solo"])
def test_path_is_not_asked_for_where_the_study_sets_it(lanes: Lanes) -> None:
    def ask() -> NoReturn:
        raise AssertionError("nobody would answer")

    AutoEngine(dataclasses.replace(COHORT, lanes=lanes), workload_of(), ask_path=ask)


def test_measuring_changes_nothing() -> None:
    measured = trained(engine_of(toy(), dataclasses.replace(COHORT, lanes="auto")), COHORT)
    assert_close(measured, trained(engine_of(toy()), COHORT))
    assert capacity.MIN_STEPS >= 1


class Hungry:
    """A loss that finds no memory for more than so many lanes; on a GPU the allocator says it."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = squared(model, batch)
        physical = loss
        while torch._C._functorch.is_batchedtensor(physical):
            physical = torch._C._functorch.get_unwrapped(physical)
        if physical.numel() > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return loss


FOUR = cohort_of("none", "global_norm:0.5", "value:0.1", "zclip:2", rung_steps=(8, 24), lanes="auto")


@cache
def four_undisturbed(lanes: Lanes) -> dict[LaneId, Outcome]:
    """What becomes of the four where memory never ends."""
    cohort = dataclasses.replace(FOUR, lanes=lanes)
    return trained(engine_of(workload_of(), cohort), cohort)


@pytest.mark.parametrize(("most", "lanes"), [(2, 64), (4, 64), (6, 64), (2, "auto"), (6, "auto")])
def test_memory_that_ends_halves_the_lanes(most: int, lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tuner.training.auto.measure_rate",
        lambda step, *, num_lanes, device: (step(), 1000.0 * num_lanes if num_lanes > 1 else 1.0)[1],
    )
    cohort = dataclasses.replace(FOUR, lanes=lanes)
    engine = engine_of(workload_of(loss=Hungry(most)), cohort)
    assert engine.choice.path == "lanes", engine.choice.reason
    found = trained(engine, cohort, 8, 24)
    assert engine.choice.path == "lanes"
    assert engine._engine.num_lanes <= most
    assert_same_bits(found, four_undisturbed(lanes))


def test_trial_that_does_not_fit_trains_solo() -> None:
    engine = engine_of(workload_of(loss=Hungry(1)), FOUR)
    found = trained(engine, FOUR, 8, 24)
    assert engine.choice.path == "solo"
    assert "memory" in engine.choice.reason
    assert_same_bits(found, trained(SoloEngine(FOUR, workload_of()), FOUR))


def test_memory_that_ends_on_the_way_loses_nothing() -> None:
    hungry = Hungry(64)
    engine = engine_of(workload_of(loss=hungry, train=growing), dataclasses.replace(FOUR, lanes=64))
    advanced(engine, lanes_of(FOUR), 8)
    assert engine._engine.num_lanes == 8
    hungry.most = 4
    found = trained(engine, FOUR, 24)
    assert engine._engine.num_lanes == 4
    assert_close(found, trained(SoloEngine(FOUR, workload_of(train=growing)), FOUR))


def test_last_trial_that_no_longer_fits_goes_on_solo() -> None:
    hungry = Hungry(64)
    engine = engine_of(workload_of(loss=hungry, train=growing), dataclasses.replace(FOUR, lanes=64))
    advanced(engine, lanes_of(FOUR), 8)
    hungry.most = 1
    found = trained(engine, FOUR, 24)
    assert engine.choice.path == "solo"
    assert engine.choice.reason.startswith("from step 8 on: one setting under 2 seeds does not fit in memory")
    assert_close(found, trained(SoloEngine(FOUR, workload_of(train=growing)), FOUR))


def test_restored_engine_goes_the_same_way() -> None:
    cohort = cohort_of("none", "value:0.1", rung_steps=(8, 60), lanes=64)
    engine = engine_of(workload_of(train=growing), cohort)
    whole = trained(engine_of(workload_of(train=growing), cohort), cohort)
    for step in (8, 50):
        advanced(engine, lanes_of(cohort), step)
        state = engine.state()
        assert state is not None
        kept = EngineState({name: each.clone() for name, each in state.tensors.items()}, state.values)
        again = engine_of(workload_of(train=growing), cohort)
        again.restore(kept)
        assert again.choice == engine.choice
        assert_close(trained(again, cohort), whole)
    assert again.choice.path == "solo"


def test_study_with_a_custom_optimizer_has_no_state() -> None:
    engine = engine_of(workload_of(optimizer=lambda given: torch.optim.SGD(given, lr=0.1)))
    assert engine.state() is None


def test_unsound_workload_is_refused_at_once() -> None:
    workload = workload_of(optimizer=sgd(0.1))
    workload.accumulation_steps = 0
    with pytest.raises(ValueError, match="accumulation_steps must be >= 1, got 0"):
        engine_of(workload)


def test_lane_is_asked_for_by_trial_and_seed() -> None:
    engine = engine_of(workload_of())
    lane = LaneId("value:0.1", 1)
    assert set(engine.evaluate([lane])) == set(engine.read([lane])) == {lane}
