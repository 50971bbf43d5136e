"""What a relay starts on its node: a real training process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.errors import TrainingError
from service.launchers.ray_relay import Order, Relay

ODD = str(Path(__file__).parent / "odd_trainer.py")


@pytest.fixture
def relay() -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(*, has_gpu: bool = False) -> Relay:
        order = Order(program=(ODD,), threads=1, kill_grace_seconds=1, has_gpu=has_gpu)
        made.append(Relay(order.to_json()))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_gpu_that_was_not_asked_for_is_hidden(
    relay: Callable[..., Relay], has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray leaves the variable alone then, and the training would take the first GPU of the node."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    process = relay(has_gpu=has_gpu)._started()
    process.send({"kind": "odd", "behaviour": "environment"})
    with pytest.raises(TrainingError, match=rf"CUDA_VISIBLE_DEVICES={'5' if has_gpu else ''}( |$)"):
        while process.receive_line(60) is not None:
            pass


def test_node_that_can_not_start_a_process_is_no_bug(
    relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one with a full disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        TrainingError, match=r"the node can't start a training process: .*No such file"
    ) as caught:
        relay()._started()
    assert caught.value.cause == "device_lost"


def test_request_that_was_ended_before_it_began_starts_nothing(relay: Callable[..., Relay]) -> None:
    ended = relay()
    ended.stop()
    with pytest.raises(TrainingError, match="was ended before its training began"):
        ended._started()
