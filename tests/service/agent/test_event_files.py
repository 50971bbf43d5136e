"""TensorBoard event files as real writers write them, whole, growing, cut off and broken."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX import SummaryWriter
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.proto.tensor_pb2 import TensorProto

from service.agent.event_files import MAX_RECORD_BYTES, EventFile, Scalar, scalars_of


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + masked(length) + event + masked(event)


def event(tag: str, step: int, value: float) -> bytes:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return bytes(Event(wall_time=1.0, step=step, summary=summary).SerializeToString())


def written(folder: Path) -> Path:
    (file,) = folder.glob("*tfevents*")
    return file


def test_scalars_of_a_real_writer(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("config", "x" * 1000)
        for step in range(5):
            writer.add_scalar("train/grad_norm", step / 4, step)
        writer.add_histogram("weights", list(range(100)), 3)
        writer.add_scalar("eval/loss", math.nan, 4)
        writer.add_scalar("eval/loss", math.inf, 2**40)
    found = EventFile(written(tmp_path)).read()
    assert found[:5] == [Scalar("train/grad_norm", step, step / 4) for step in range(5)]
    assert (found[5].tag, found[5].step, math.isnan(found[5].value)) == ("eval/loss", 4, True)
    assert found[6:] == [Scalar("eval/loss", 2**40, math.inf)]


def test_growing_file_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    file = EventFile(path)
    assert file.read() == []
    whole = b"".join(record(event("loss", step, step)) for step in range(3))
    found = []
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        found += file.read()
    assert found == [Scalar("loss", step, float(step)) for step in range(3)]


def test_record_that_is_not_whole_on_disk_yet_is_read_later(tmp_path: Path) -> None:
    """Some file systems show a file's new length before its new content."""
    path = tmp_path / "events.out.tfevents.1"
    first, second = record(event("loss", 1, 1.0)), record(event("loss", 2, 2.0))
    file = EventFile(path)
    path.write_bytes(first + bytes(len(second)))
    assert file.read() == [Scalar("loss", 1, 1.0)]
    path.write_bytes(first + second)
    assert file.read() == [Scalar("loss", 2, 2.0)]


def test_broken_record_costs_itself_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    broken = bytearray(record(event("loss", 1, 1.0)))
    broken[-8] ^= 1
    path.write_bytes(bytes(broken) + record(event("loss", 2, 2.0)))
    file = EventFile(path)
    assert file.read() == []
    assert file.read(is_final=True) == [Scalar("loss", 2, 2.0)]


def test_broken_length_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    broken = bytearray(record(event("loss", 1, 1.0)))
    broken[0] ^= 1
    path.write_bytes(bytes(broken) + record(event("loss", 2, 2.0)))
    assert EventFile(path).read(is_final=True) == []


def test_large_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(record(bytes(MAX_RECORD_BYTES + 1)) + record(event("loss", 2, 2.0)))
    assert EventFile(path).read() == [Scalar("loss", 2, 2.0)]


def test_reading_may_begin_at_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    first = record(event("loss", 1, 1.0))
    path.write_bytes(first + record(event("loss", 2, 2.0)))
    assert EventFile(path, len(first)).read() == [Scalar("loss", 2, 2.0)]


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(dtype=1, float_val=[1.5]),
        TensorProto(dtype=1, tensor_content=struct.pack("<f", 1.5)),
        TensorProto(dtype=2, double_val=[1.5]),
        TensorProto(dtype=2, tensor_content=struct.pack("<d", 1.5)),
    ],
    ids=["float", "float content", "double", "double content"],
)
def test_scalar_written_as_a_tensor(tensor: TensorProto) -> None:
    summary = Summary(value=[Summary.Value(tag="loss", tensor=tensor)])
    assert scalars_of(Event(step=3, summary=summary).SerializeToString()) == [Scalar("loss", 3, 1.5)]


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(dtype=1, float_val=[1.5, 2.5]),
        TensorProto(dtype=7, string_val=[b"text"]),
        TensorProto(dtype=3, int_val=[1]),
        TensorProto(),
    ],
    ids=["two numbers", "text", "whole number", "nothing"],
)
def test_other_tensors_are_no_scalars(tensor: TensorProto) -> None:
    summary = Summary(value=[Summary.Value(tag="loss", tensor=tensor)])
    assert scalars_of(Event(step=3, summary=summary).SerializeToString()) == []


def test_negative_step_and_several_values_of_one_event() -> None:
    summary = Summary(
        value=[Summary.Value(tag="a", simple_value=1.0), Summary.Value(tag="b", simple_value=2.0)]
    )
    assert scalars_of(Event(step=-2, summary=summary).SerializeToString()) == [
        Scalar("a", -2, 1.0),
        Scalar("b", -2, 2.0),
    ]


@given(st.binary(max_size=60))
def test_any_bytes_are_scalars_or_nothing(data: bytes) -> None:
    assert all(isinstance(each, Scalar) for each in scalars_of(data))


@given(st.data())
def test_event_that_is_cut_off_anywhere_never_breaks(data: st.DataObject) -> None:
    whole = event("loss", 300, 1.5)
    position = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    changed = (
        whole[:position] + bytes([data.draw(st.integers(min_value=0, max_value=255))]) + whole[position + 1 :]
    )
    assert isinstance(scalars_of(whole[:position]), list)
    assert isinstance(scalars_of(changed), list)
