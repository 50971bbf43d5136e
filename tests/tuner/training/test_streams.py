"""Random streams of a batch: every seed draws for itself, what a plain run of that seed draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import regression, toy, workload_of

from tuner.errors import LaneError
from tuner.training.engine import LaneId
from tuner.training.not_batchable import NotBatchableError
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.streams import DataStreams, SeedStreams

CPU = torch.device("cpu")


def uniform(row: Tensor, generator: torch.Generator) -> object:
    return row.uniform_(generator=generator)


def drawn(streams: SeedStreams, width: int = 5) -> Tensor:
    return streams.draw(uniform, torch.empty(len(streams.generators), width))


def test_seed_draws_what_its_plain_run_draws() -> None:
    streams = SeedStreams((3, 7), "training", CPU)
    found = torch.cat([drawn(streams), drawn(streams)], dim=1)
    for row, seed in zip(found, (3, 7), strict=True):
        with GlobalStream(seed, "training", CPU).active():
            assert torch.equal(row, torch.cat([torch.rand(5), torch.rand(5)]))


def test_other_seeds_and_the_callers_generator_change_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = drawn(SeedStreams((7,), "training", CPU))
    torch.rand(3)
    together = drawn(SeedStreams((3, 7, 9), "training", CPU))
    assert torch.equal(together[1], alone[0])
    torch.set_rng_state(before)
    assert torch.equal(drawn(SeedStreams((7,), "training", CPU)), alone)


def test_purposes_are_streams_of_their_own() -> None:
    assert not torch.equal(
        drawn(SeedStreams((7,), "training", CPU)), drawn(SeedStreams((7,), "validation", CPU))
    )


def test_draw_has_the_type_and_is_contiguous() -> None:
    streams = SeedStreams((0, 1), "training", CPU)
    like = torch.empty(4, 2, dtype=torch.float64).T
    found = streams.draw(lambda row, generator: row.normal_(generator=generator), like)
    assert found.dtype == torch.float64
    assert found.is_contiguous()
    assert found.shape == like.shape


def test_draw_without_a_row_per_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a draw of shape \(3, 5\) has no row for each of 2 seeds"):
        SeedStreams((0, 1), "training", CPU).draw(uniform, torch.empty(3, 5))


def test_copy_goes_on_from_the_same_place_by_itself() -> None:
    streams = SeedStreams((0, 1), "training", CPU)
    drawn(streams)
    copy = streams.copy()
    first = drawn(copy)
    drawn(copy)
    assert torch.equal(drawn(streams), first)


@pytest.mark.parametrize("num_seeds", [1, 2, 5])
def test_restored_streams_go_on_bit_for_bit(num_seeds: int) -> None:
    seeds = tuple(range(num_seeds))
    streams = SeedStreams(seeds, "training", CPU)
    drawn(streams)
    state = streams.state()
    assert state.shape[0] == num_seeds
    assert state.dtype == torch.uint8
    again = SeedStreams(seeds, "training", CPU)
    again.restore(state)
    assert torch.equal(drawn(again), drawn(streams))


@pytest.mark.parametrize("num_seeds", [1, 2, 5])
def test_restored_data_go_on_bit_for_bit(num_seeds: int) -> None:
    seeds = tuple(range(num_seeds))
    data = DataStreams(workload_of(), seeds)
    data.step(0)
    again = DataStreams(workload_of(), seeds)
    again.restore(data.state())
    assert torch.equal(again.step(1)[0].tensors[0], data.step(1)[0].tensors[0])


def test_every_seed_gets_its_own_batches_in_order() -> None:
    (first,) = DataStreams(workload_of(), (4, 9)).step(0)
    for number, seed in enumerate((4, 9)):
        inputs, targets = regression(0, data_generator(seed))
        assert torch.equal(first.tensors[0][number], inputs)
        assert torch.equal(first.tensors[1][number], targets)


def test_step_draws_as_many_batches_as_are_accumulated() -> None:
    seen = []

    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(step)
        return regression(step, generator)

    data = DataStreams(workload_of(train=train, accumulation_steps=3), (0, 1))
    assert len(data.step(0)) == len(data.step(1)) == 3
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_exception_of_the_data_names_the_lane_that_is_blamed() -> None:
    lane = LaneId("t", 5)
    with pytest.raises(LaneError, match="trial t with seed 5 failed at step 2: RuntimeError: broken data"):
        DataStreams(toy(raise_step=2), (5,)).step(2, blamed=lane)
    with pytest.raises(RuntimeError, match=r"^broken data$"):
        DataStreams(toy(raise_step=2), (5,)).step(2)


def test_seeds_with_other_shapes_are_told() -> None:
    sizes = iter((3, 4))
    data = DataStreams(
        workload_of(train=lambda step, generator: regression(step, generator, next(sizes))), (0, 1)
    )
    with pytest.raises(NotBatchableError, match="different shapes or plain values to different seeds"):
        data.step(0)
