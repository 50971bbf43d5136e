"""Every registered workload gives the same training for the same seed, and keeps its held-out data to itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tuner.errors import SpecError
from tuner.lanes import Layout, row_of, trainable
from tuner.training.initial import initial_model
from tuner.training.randomness import data_generator
from tuner.workloads import WORKLOADS, AnyWorkload, create_workload
from tuner.workloads.batches import batch_size, tensors
from tuner.workloads.charlm_rnn import NUM_VALIDATION_WINDOWS, load_text
from tuner.workloads.digits_mlp import load_digits

CPU = torch.device("cpu")


@pytest.fixture(params=sorted(WORKLOADS))
def workload(request: pytest.FixtureRequest) -> AnyWorkload:
    return create_workload(request.param, {})


def batches(workload: AnyWorkload, seed: int, count: int = 3) -> list[list[Tensor]]:
    generator = data_generator(seed)
    return [list(tensors(workload.train_batch(step, generator))) for step in range(count)]


def are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_same_seed_gives_the_same_batches(workload: AnyWorkload) -> None:
    assert all(map(are_equal, batches(workload, 3), batches(workload, 3)))


def test_batches_vary_by_step_and_by_seed(workload: AnyWorkload) -> None:
    first, second, _ = batches(workload, 3)
    assert not are_equal(first, second)
    assert not are_equal(first, batches(workload, 4)[0])


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(workload: AnyWorkload) -> None:
    one, same, other = (list(initial_model(workload, seed, CPU).parameters()) for seed in (0, 0, 1))
    assert are_equal(one, same)
    assert not are_equal(one, other)


def test_losses_are_finite_scalars_that_a_gradient_can_be_taken_of(workload: AnyWorkload) -> None:
    model = initial_model(workload, 0, CPU)
    loss = workload.loss(model, workload.train_batch(0, data_generator(0)))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    assert all(each.grad is not None for each in model.parameters())
    for batch in workload.validation_batches():
        assert workload.loss(model, batch).isfinite()
        assert workload.metric(model, batch).shape == ()


def test_held_out_data_is_the_same_at_every_call(workload: AnyWorkload) -> None:
    one, other = (list(tensors(list(workload.validation_batches()))) for _ in range(2))
    assert are_equal(one, other)


def test_optimizer_is_lane_wise_and_starts_afresh(workload: AnyWorkload) -> None:
    parameters = trainable(initial_model(workload, 0, CPU))
    layout, row = Layout.of(parameters.items()), row_of(parameters).unsqueeze(0)
    optimizer = workload.optimizer()
    assert optimizer.is_lane_wise
    one, other = (optimizer.initial_state(row, layout) for _ in range(2))
    assert one.keys() == other.keys()
    assert not any(one[name] is other[name] for name in one)


def test_parameters_round_trip_and_are_bounded(workload: AnyWorkload) -> None:
    fields = workload.parameter_fields()
    assert fields
    values = workload.parameter_values
    assert values == {field.name: field.default for field in fields}
    assert create_workload(workload.name, values).parameter_values == values
    for field in fields:
        assert field.description.endswith(".")
        assert field.low is not None and field.high is not None
        with pytest.raises(SpecError, match=f"parameters.{field.name} must be <="):
            create_workload(workload.name, {field.name: type(field.default)(field.high * 2)})
        with pytest.raises(SpecError, match=f"parameters.{field.name} must be >="):
            create_workload(workload.name, {field.name: type(field.default)(field.low / 2)})


def test_registered_name_is_the_workloads_own(workload: AnyWorkload) -> None:
    assert create_workload(workload.name, {}).name == workload.name
    assert workload.description.endswith(".")
    assert workload.objective == "val_loss"


def test_charlm_windows_come_from_disjoint_ends_of_the_text() -> None:
    text = load_text()
    assert len(text.train) == 9 * (len(text.train) + len(text.held_out)) // 10
    workload = create_workload("charlm-rnn", {"window": 32})
    train = "".join(map(chr, text.train.tolist()))
    held_out = "".join(map(chr, text.held_out.tolist()))
    characters, following = workload.train_batch(0, data_generator(0))
    assert torch.equal(characters[:, 1:], following[:, :-1])
    assert all("".join(map(chr, row)) in train for row in characters.tolist())
    ((characters, following),) = workload.validation_batches()
    assert characters.shape == following.shape == (NUM_VALIDATION_WINDOWS, 32)
    assert all("".join(map(chr, row)) in held_out for row in characters.tolist())


def test_digits_split_is_disjoint_and_stratified() -> None:
    digits = load_digits()
    (train, train_labels), (held_out, held_out_labels) = digits
    assert (len(train), len(held_out)) == (1437, 360)
    shared = {tuple(row) for row in train.tolist()} & {tuple(row) for row in held_out.tolist()}
    assert not shared
    shares = [
        torch.bincount(labels, minlength=10) / len(labels) for labels in (train_labels, held_out_labels)
    ]
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=0.01)
    assert batch_size((train, train_labels)) == 1437
