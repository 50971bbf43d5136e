"""Which row of a block is whose, and blocks that are cut, copied and put together."""

from __future__ import annotations

import pytest
import torch
from toys import advanced, bits, cohort_of, lanes_of, toy

from tuner.spec import ClipSetting
from tuner.training.batched import BatchedEngine
from tuner.training.block import Block
from tuner.training.engine import LaneId

TRIALS = ("none", "value:0.1", "zclip:2", "global_norm:0.5")


def block_of(*trials: str, seeds: tuple[int, ...] = (3, 5), step: int = 6) -> Block:
    """A block whose lanes have taken some steps."""
    cohort = cohort_of(*(trials or TRIALS), seeds=seeds, rung_steps=(12,))
    engine = BatchedEngine(cohort, toy(batch_norm=True))
    advanced(engine, lanes_of(cohort), step)
    (block,) = engine._blocks
    return block


def assert_same_lane(one: Block, other: Block, lane: LaneId) -> None:
    mine, theirs = one.row_of(lane), other.row_of(lane)
    for name, tensor in one.batch.tensors().items():
        if name not in ("step", "trace.num_recorded"):
            assert bits(tensor[mine]) == bits(other.batch.tensors()[name][theirs]), name


def test_rows_are_seeds_of_trials() -> None:
    # Two seeds by four trials: row s * 4 + k.
    block = block_of()
    assert block.rows_of("none") == [0, 4]
    assert block.rows_of("global_norm:0.5") == [3, 7]
    assert block.row_of(LaneId("zclip:2", 5)) == 6
    assert [str(block.batch.settings[row]) for row in block.rows_of("value:0.1")] == ["value:0.1"] * 2


def test_trials_that_ended_train_no_more() -> None:
    block = block_of()
    block.end("value:0.1")
    assert block.wanted == ("none", "zclip:2", "global_norm:0.5")
    assert LaneId("value:0.1", 3) not in block.training_lanes()
    assert len(block.training_lanes()) == 6


def test_lanes_that_diverged_train_no_more_once_the_host_has_looked() -> None:
    block = block_of()
    block.batch.live[block.row_of(LaneId("zclip:2", 5))] = False
    assert len(block.training_lanes()) == 8
    block.look()
    assert set(block.training_lanes()) == {LaneId(trial, seed) for trial in TRIALS for seed in (3, 5)} - {
        LaneId("zclip:2", 5)
    }


@pytest.mark.parametrize("trials", [("zclip:2",), ("global_norm:0.5", "none"), TRIALS], ids="+".join)
def test_part_is_a_copy_of_its_lanes(trials: tuple[str, ...]) -> None:
    block = block_of()
    part = block.part(trials)
    assert (part.trials, part.seeds, part.step) == (trials, (3, 5), 6)
    for trial in trials:
        for seed in block.seeds:
            assert_same_lane(part, block, LaneId(trial, seed))
    part.batch.weights.zero_()
    assert block.batch.weights.any()
    assert torch.equal(part.streams.state(), block.streams.state())
    assert part.streams is not block.streams


def test_departed_lanes_are_copies_under_other_settings() -> None:
    block = block_of()
    settings = {text: ClipSetting.parse(text) for text in ("value:7", "global_norm:9")}
    departed = block.departed("none", settings)
    assert departed.trials == ("value:7", "global_norm:9")
    for trial, setting in settings.items():
        for seed in (3, 5):
            row = departed.row_of(LaneId(trial, seed))
            assert departed.batch.settings[row] == setting
            assert bits(departed.batch.weights[row]) == bits(
                block.batch.weights[block.row_of(LaneId("none", seed))]
            )


def test_blocks_beside_one_another_keep_their_lanes_apart() -> None:
    block = block_of()
    left, right = block.part(["zclip:2", "none"]), block.part(["global_norm:0.5"])
    left.end("none")
    together = left.beside(right)
    assert together.trials == ("zclip:2", "none", "global_norm:0.5")
    assert together.ended == {"none"}
    assert together.step == 6
    for trial in together.trials:
        for seed in together.seeds:
            assert_same_lane(together, block, LaneId(trial, seed))


def test_lanes_are_handed_over_one_by_one() -> None:
    block = block_of()
    data = torch.arange(2).repeat_interleave(3).reshape(2, 3)
    seconds = {LaneId("zclip:2", 5): 1.5}
    first, second = block.handed_over("zclip:2", data, seconds)
    assert (first.lane, second.lane) == (LaneId("zclip:2", 3), LaneId("zclip:2", 5))
    assert (first.step, first.seconds, second.seconds) == (6, 0.0, 1.5)
    assert second.data.tolist() == [1, 1, 1]
    assert len(second.batch) == 1
    assert bits(second.batch.weights[0]) == bits(block.batch.weights[block.row_of(second.lane)])
    assert bits(second.draws) == bits(block.streams.state()[1])
