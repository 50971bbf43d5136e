"""What the batched engine does beyond the contract: lanes in any company and order, blocks, compaction, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import (
    advanced,
    assert_close,
    assert_same_bits,
    cohort_of,
    lanes_of,
    outcomes,
    regression,
    squared,
    toy,
    trained,
    workload_of,
)

from tuner.training.batched import BatchedEngine
from tuner.training.engine import LaneId
from tuner.training.lane_batch import LaneBatch
from tuner.training.not_batchable import NotBatchableError
from tuner.training.tracing import Recorded

TEXTS = (
    "none", "global_norm:0.1", "global_norm:0.7", "global_norm_inf:0.2", "value:0.05", "per_tensor_norm:0.5",
    "agc:0.05", "autoclip:50", "zclip:2", "adagc:1.1", "norm_growth:1.1", "quantile:0.5", "skip_step:3",
)  # fmt: skip
some = st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6, unique=True)
few_and_quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few_and_quick
@given(texts=some, data=st.data())
def test_order_of_trials_changes_no_bit(texts: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(texts))
    one, two = (cohort_of(*each, rung_steps=(10,), reference_norm=1.0) for each in (texts, other))
    assert_same_bits(trained(BatchedEngine(one, toy()), one), trained(BatchedEngine(two, toy()), two))


@few_and_quick
@given(texts=some, data=st.data())
def test_more_trials_change_no_bit(texts: list[str], data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(2, len(texts)))
    whole = cohort_of(*texts, rung_steps=(10,), reference_norm=1.0)
    part = cohort_of(*texts[:num_kept], rung_steps=(10,), reference_norm=1.0)
    assert_same_bits(trained(BatchedEngine(part, toy()), part), trained(BatchedEngine(whole, toy()), whole))


@few_and_quick
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True), data=st.data())
def test_order_and_number_of_seeds_change_no_bit(seeds: list[int], data: st.DataObject) -> None:
    other = data.draw(st.permutations(seeds))[: data.draw(st.integers(1, len(seeds)))]
    texts = ("none", "global_norm:0.5", "zclip:2")
    whole = cohort_of(*texts, seeds=seeds, rung_steps=(10,))
    part = cohort_of(*texts, seeds=other, rung_steps=(10,))
    assert_same_bits(trained(BatchedEngine(part, toy()), part), trained(BatchedEngine(whole, toy()), whole))


@pytest.mark.parametrize(("max_lanes", "num_lanes"), [(None, 10), (10, 10), (9, 8), (4, 4), (2, 2), (1, 2)])
def test_blocks_hold_whole_trials_and_no_more_lanes_than_allowed(
    max_lanes: int | None, num_lanes: int
) -> None:
    # Five trials under two seeds; a trial under all its seeds is the least there is.
    cohort = cohort_of(*TEXTS[:5], rung_steps=(10,))
    engine = BatchedEngine(cohort, toy(), max_lanes=max_lanes)
    assert engine.num_lanes == num_lanes
    assert (engine.choice.path, engine.choice.num_lanes) == ("lanes", num_lanes)
    assert_close(trained(engine, cohort), trained(BatchedEngine(cohort, toy()), cohort), tolerance=1e-6)


def test_columns_are_freed_once_half_of_a_block_is_not_wanted() -> None:
    cohort = cohort_of(*TEXTS[:6], rung_steps=(4, 8, 12, 16, 20))
    engine = BatchedEngine(cohort, toy())
    whole = BatchedEngine(cohort, toy())
    left = list(TEXTS[:6])
    advanced(engine, lanes_of(cohort), 4)
    # Trials wanted and lanes held after each retirement: 4 of 6 stay beside dead rows, 3 of 6 do not.
    for step, retired, num_lanes in ((8, 2, 12), (12, 1, 6), (16, 1, 6), (20, 1, 2)):
        gone, left = left[:retired], left[retired:]
        engine.retire(lanes_of(cohort, *gone))
        advanced(engine, lanes_of(cohort, *left), step)
        advanced(whole, lanes_of(cohort), step)
        assert engine.num_lanes == num_lanes
        lanes = lanes_of(cohort, *left)
        assert_same_bits(outcomes(engine, lanes), outcomes(whole, lanes))


def test_step_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class NothingIsRead(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
            assert not reads or func is torch.ops.aten.index.Tensor, f"{func} reads a tensor's values"
            return func(*args, **(kwargs or {}))

    num_guarded = 0

    def guarded(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            nonlocal num_guarded
            num_guarded += 1
            with NothingIsRead():
                return function(*args, **kwargs)

        return run

    monkeypatch.setattr(LaneBatch, "apply", guarded(LaneBatch.apply))
    monkeypatch.setattr(LaneBatch, "flush", guarded(LaneBatch.flush))
    monkeypatch.setattr(Recorded, "__call__", guarded(Recorded.__call__))
    cohort = cohort_of(*TEXTS, "global_norm:1e9", rung_steps=(40,), reference_norm=1.0, largest_norm=50.0)
    engine = BatchedEngine(cohort, toy(batch_norm=True, momentum=0.9, learning_rate=0.01))
    advanced(engine, lanes_of(cohort), 40)
    assert num_guarded >= 2 * 40


def test_agreement_is_asked_of_every_workload() -> None:
    BatchedEngine(cohort_of("none", "value:0.1"), toy(batch_norm=True)).require_agreement()


def test_faulty_batched_form_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A form of tanh that is wrong in every lane but the first.
    from tuner.functions import substitution

    def faulty(x: Tensor) -> Tensor:
        return torch.sinh(x) / torch.cosh(x) * 1.1

    monkeypatch.setitem(substitution._REPLACEMENTS, torch.tanh, faulty)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (torch.tanh(model[0](batch[0])).sum(1, keepdim=True) - batch[1]).square().mean()

    engine = BatchedEngine(cohort_of("none", "value:0.1"), workload_of(model, loss=loss))
    with pytest.raises(
        NotBatchableError, match=r"batched and plain training differ by .* faulty batched form"
    ):
        engine.require_agreement()


def test_rehearsal_changes_nothing() -> None:
    cohort = cohort_of(*TEXTS[:4])
    engine = BatchedEngine(cohort, toy(batch_norm=True))
    step = engine.rehearsal(2)
    for _ in range(3):
        step()
    engine.require_agreement()
    assert_same_bits(trained(engine, cohort), trained(BatchedEngine(cohort, toy(batch_norm=True)), cohort))


def test_lane_that_is_no_longer_asked_for_takes_no_more_steps() -> None:
    cohort = cohort_of("none", "value:0.1", rung_steps=(4, 12))
    engine = BatchedEngine(cohort, toy())
    advanced(engine, lanes_of(cohort), 4)
    stopped = LaneId("none", 1)
    found = trained(engine, cohort, 12, lanes=[lane for lane in lanes_of(cohort) if lane != stopped])
    assert engine.read([stopped])[stopped].num_steps == 4
    assert_same_bits(found, trained(BatchedEngine(cohort, toy()), cohort))


def test_loss_that_is_no_number_is_told_before_training() -> None:
    engine = BatchedEngine(
        cohort_of("none"), workload_of(loss=lambda model, batch: squared(model, batch).reshape(1, 1))
    )
    advanced(engine, lanes_of(cohort_of("none")), 1)  # one element is one number


def test_data_of_a_step_are_drawn_once_whatever_the_blocks() -> None:
    seen: list[int] = []

    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(step)
        return regression(step, generator)

    cohort = cohort_of(*TEXTS[:4], seeds=(0, 1, 2), rung_steps=(5,))
    engine = BatchedEngine(cohort, workload_of(train=train), max_lanes=3)
    seen.clear()
    advanced(engine, lanes_of(cohort), 5)
    assert seen == [step for step in range(5) for _ in range(3)]
