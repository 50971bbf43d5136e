"""A lane batch: rows that never mix, a step without a look at the device, and rows that can be taken anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import bits

from tuner.lanes import Layout
from tuner.methods import METHODS, OFF
from tuner.optimizers import (
    OptimizerSetting,
    adagrad,
    adam,
    adamw,
    cosine,
    muon,
    rmsprop,
    sgd,
    shampoo,
    step_decay,
    warmup,
)
from tuner.spec import ClipSetting
from tuner.training.lane_batch import MAX_UNFLUSHED, LaneBatch, mean_of_parts, side_by_side

LAYOUT = Layout(("weight", "bias"), ((3, 2), (3,)))
OPTIMIZERS: Mapping[str, OptimizerSetting] = {
    "sgd": sgd(0.1),
    "nesterov": sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01, schedule=cosine(50)),
    "adam": adam(0.01, weight_decay=0.1),
    "adamw": adamw(0.01, schedule=warmup(3)),
    "rmsprop": rmsprop(0.01, momentum=0.5, centered=True),
    "adagrad": adagrad(0.1, lr_decay=0.1, schedule=step_decay(2, 0.5)),
    "muon": muon(0.01),
    "shampoo": shampoo(0.05),
}


def threshold_of(method: str) -> float | None:
    known = METHODS[method]
    if not known.has_threshold:
        return None
    low = known.kappa_low or known.threshold_low or 0.1
    high = known.kappa_high or known.threshold_high or 1.0
    return known.at_coordinate((known.coordinate(low) * known.coordinate(high)) ** 0.5)


EVERY_METHOD = tuple(ClipSetting(method=method, threshold=threshold_of(method)) for method in sorted(METHODS))


def drawn(num_lanes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_lanes, LAYOUT.num_parameters, generator=generator)


def batch_of(
    clips: Sequence[ClipSetting] = EVERY_METHOD,
    optimizer: OptimizerSetting = OPTIMIZERS["adam"],
    **options: Any,
) -> LaneBatch:
    weights = drawn(1, 0).repeat(len(clips), 1)
    return LaneBatch(
        clips, LAYOUT, weights, optimizer=optimizer, num_steps=100, reference_norm=1.0, **options
    )


def step(batch: LaneBatch, number: int, rows: Sequence[int] | None = None) -> None:
    """One update in which lane k of all lanes has the gradient k of this step, whoever else is there."""
    lanes = list(range(len(batch))) if rows is None else list(rows)
    grads = drawn(20, 100 + number)[lanes]
    if batch.is_full:
        batch.flush()
    batch.update(grads.square().sum(1), grads.clone())


def trained(batch: LaneBatch, steps: range, rows: Sequence[int] | None = None) -> LaneBatch:
    for number in steps:
        step(batch, number, rows)
    return batch


def assert_rows_equal(
    one: LaneBatch, rows: Sequence[int], other: LaneBatch, other_rows: Sequence[int]
) -> None:
    mine, theirs = one.tensors(), other.tensors()
    for name in mine.keys() & theirs.keys() - {"step", "trace.num_recorded"}:
        assert bits(mine[name][list(rows)]) == bits(theirs[name][list(other_rows)]), name
    records, others = one.trace.read(), other.trace.read()
    assert [records[row] for row in rows] == [others[row] for row in other_rows]


class NothingIsRead(TorchDispatchMode):
    """Raises where a result, or its shape, depends on a tensor's values: there the host would wait."""

    reading = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            # Its shape depends on values only where it selects by a mask.
            assert all(each is None or each.dtype != torch.bool for each in args[1]), "indexing by a mask"
        else:
            assert not set(self.reading) & set(func.tags), f"{func} reads a tensor's values"
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_read() -> Iterator[None]:
    with NothingIsRead():
        yield


def test_guard_notices_a_value_that_is_read() -> None:
    for reading in (
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ):
        with pytest.raises(AssertionError), nothing_read():
            reading(torch.ones(3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_of_all_methods_together_reads_nothing(optimizer: str) -> None:
    batch = batch_of(optimizer=OPTIMIZERS[optimizer])
    with nothing_read():
        trained(batch, range(3))
        batch.flush()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_step_of_one_method_reads_nothing(method: str) -> None:
    batch = batch_of([ClipSetting(method=method, threshold=threshold_of(method))] * 2, precision="fp16")
    with nothing_read():
        trained(batch, range(MAX_UNFLUSHED + 3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_lane_that_is_not_finite_keeps_everything_and_the_others_notice_nothing(
    optimizer: str, bad: float
) -> None:
    clips = [ClipSetting.parse(text) for text in ("none", "global_norm:1", "zclip:2", "value:0.5")]
    healthy = trained(batch_of(clips, OPTIMIZERS[optimizer]), range(8))
    batch = trained(batch_of(clips, OPTIMIZERS[optimizer]), range(5))
    weights = batch.weights[2].clone()
    state = {name: each[2].clone() for name, each in batch.optimizer_state.items()}
    for number in range(5, 8):
        grads = drawn(20, 100 + number)[:4].clone()
        losses = grads.square().sum(1)
        grads[2, 1] = bad
        batch.update(losses, grads)
    assert batch.live.tolist() == [True, True, False, True]
    assert bits(batch.weights[2]) == bits(weights)
    for name, each in state.items():
        assert bits(batch.optimizer_state[name][2]) == bits(each), name
    record = batch_record(batch, 2)
    assert (record.divergence_step, record.num_steps, record.num_non_finite) == (5, 5, 1)
    assert_rows_equal(batch, [0, 1, 3], healthy, [0, 1, 3])


def batch_record(batch: LaneBatch, row: int) -> Any:
    batch.flush()
    return batch.trace.read()[row]


def test_loss_that_is_not_finite_ends_a_lane_with_a_finite_gradient() -> None:
    batch = batch_of([ClipSetting.parse("none")] * 2)
    batch.update(torch.tensor([1.0, torch.inf]), drawn(2, 1))
    assert batch.live.tolist() == [True, False]
    assert bits(batch.weights[1]) == bits(drawn(1, 0)[0])


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(len(EVERY_METHOD))), optimizer=st.sampled_from(sorted(OPTIMIZERS)))
def test_lanes_in_another_order_are_the_same_lanes(order: list[int], optimizer: str) -> None:
    setting = OPTIMIZERS[optimizer]
    one = trained(batch_of(optimizer=setting), range(6))
    other = trained(batch_of([EVERY_METHOD[row] for row in order], setting), range(6), order)
    for place, row in enumerate(order):
        assert bits(one.weights[row]) == bits(other.weights[place])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_selected_lanes_go_on_as_they_would_have(optimizer: str) -> None:
    setting = OPTIMIZERS[optimizer]
    rows = [7, 2, 4]
    whole = trained(batch_of(optimizer=setting), range(5))
    part = whole.select(rows)
    trained(part, range(5, 9), rows)
    trained(whole, range(5, 9))
    assert_rows_equal(part, range(3), whole, rows)


def test_selection_shares_no_tensor() -> None:
    whole = trained(batch_of(), range(3))
    before = whole.weights.clone()
    trained(whole.select([0, 1]), range(3, 6))
    assert bits(whole.weights) == bits(before)


def test_lanes_of_two_batches_go_on_side_by_side() -> None:
    left = [ClipSetting.parse(text) for text in ("zclip:2", "none", "autoclip:50")]
    right = [ClipSetting.parse(text) for text in ("value:0.1", "zclip:3")]
    one, other = trained(batch_of(left), range(5)), trained(batch_of(right), range(5))
    together = side_by_side([one, other], [3, 0, 4, 2, 1])
    trained(together, range(5, 9), [0, 0, 1, 2, 1])
    trained(one, range(5, 9))
    trained(other, range(5, 9))
    assert [str(each) for each in together.settings] == [
        "value:0.1",
        "zclip:2",
        "zclip:3",
        "autoclip:50",
        "none",
    ]
    for row, (batch, theirs) in enumerate([(other, 0), (one, 0), (other, 1), (one, 2), (one, 1)]):
        assert bits(together.weights[row]) == bits(batch.weights[theirs])
        assert batch_record(together, row) == batch_record(batch, theirs)


def test_copy_under_another_setting_is_that_setting_from_now_on() -> None:
    off = trained(batch_of([ClipSetting.parse("none")]), range(5))
    copies = off.select([0, 0], [ClipSetting.parse("global_norm:0.1"), ClipSetting.parse("value:0.1")])
    trained(copies, range(5, 9), [0, 0])
    expected = batch_of([ClipSetting.parse("global_norm:1e9"), ClipSetting.parse("value:1e9")])
    assert len(copies) == len(expected) == 2
    record = batch_record(copies, 0)
    assert record.first_clipped_step == 5
    assert record.num_steps == 9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stopped_at", [0, 3, MAX_UNFLUSHED])
def test_restored_batch_goes_on_bit_for_bit(optimizer: str, stopped_at: int) -> None:
    setting = OPTIMIZERS[optimizer]
    batch = trained(batch_of(optimizer=setting, precision="fp16"), range(stopped_at))
    state = {name: each.clone() for name, each in batch.tensors().items()}
    again = batch_of(optimizer=setting, precision="fp16")
    again.restore(state)
    assert state.keys() == again.tensors().keys()
    trained(again, range(stopped_at, 40))
    trained(batch, range(stopped_at, 40))
    rows = range(len(EVERY_METHOD))
    assert_rows_equal(again, rows, batch, rows)


def test_clip_state_is_named_by_method_whatever_the_mixture() -> None:
    names = {name.partition(".")[0] for name in batch_of([ClipSetting.parse("zclip:2")]).named_clip_state()}
    assert names == {"zclip"}
    mixed = batch_of([ClipSetting.parse("zclip:2"), ClipSetting.parse("autoclip:50"), ClipSetting.parse(OFF)])
    assert {name.partition(".")[0] for name in mixed.named_clip_state()} == {"zclip", "autoclip"}


def test_records_are_full_after_so_many_steps() -> None:
    batch = batch_of()
    for number in range(MAX_UNFLUSHED):
        assert not batch.is_full
        step(batch, number)
    assert batch.is_full
    batch.flush()
    assert not batch.is_full
    assert batch.trace.num_recorded == MAX_UNFLUSHED


def test_flush_of_nothing_changes_nothing() -> None:
    batch = trained(batch_of(), range(2))
    batch.flush()
    before = batch.trace.read()
    batch.flush()
    assert batch.trace.read() == before


def test_mean_of_parts_is_the_mean() -> None:
    parts = [(torch.tensor([1.0, 2.0]), torch.full((2, 3), float(number))) for number in (1, 2, 6)]
    losses, grads = mean_of_parts(parts)
    assert losses.tolist() == [1.0, 2.0]
    assert grads.tolist() == [[3.0] * 3] * 2
    single = (torch.ones(2), torch.ones(2, 3))
    assert mean_of_parts([single]) == single
