"""Streams: named by seed and purpose, isolated from the caller, continued where they stopped."""

from __future__ import annotations

import pytest
import torch

from tuner.training.randomness import GlobalStream, data_generator, stream_seed

CPU = torch.device("cpu")


def draw(stream: GlobalStream, count: int) -> list[float]:
    with stream.active():
        return torch.rand(count).tolist()


def test_stream_continues_where_it_stopped() -> None:
    whole, cut = GlobalStream(0, "training", CPU), GlobalStream(0, "training", CPU)
    assert draw(whole, 6) == [*draw(cut, 3), *draw(cut, 3)]


def test_streams_of_other_seeds_and_purposes_differ() -> None:
    names = [(0, "training"), (1, "training"), (0, "model")]
    assert len({tuple(draw(GlobalStream(*name, CPU), 2)) for name in names}) == 3
    assert len({stream_seed(*name) for name in names}) == 3
    assert data_generator(0).initial_seed() != data_generator(1).initial_seed()


def test_callers_generator_is_given_back_even_after_an_error() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError), GlobalStream(0, "training", CPU).active():
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.rand(1), expected)
