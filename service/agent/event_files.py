"""Read scalars from TensorBoard event files while they are written, with nothing but the standard library.

An event file is a sequence of records: length (8 bytes, little-endian), its checksum, data, its checksum. The data of
one is an Event in protocol buffers' wire format. Only scalars are read; images and the like are passed over by their
length. Layouts: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto and framework/summary.proto.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: A record with scalars alone is far smaller; a larger one is passed over unread, in bytes.
MAX_RECORD_BYTES = 65_536

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size
#: Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: By tensorflow's DataType (float, double): form of a number, and the field of a TensorProto that lists such numbers.
_NUMBERS = {b"\1": ("<f", 5, _FIXED32), b"\2": ("<d", 6, _FIXED64)}


@dataclass(frozen=True)
class Scalar:
    """One point of a chart.

    Attributes:
        tag: name of the chart.
        step: as the program gave it.
        value: may be NaN or infinite.
    """

    tag: str
    step: int
    value: float


class EventFile:
    """One event file, read on from where the last reading ended.

    Args:
        path: of the file.
        offset: where to begin, in bytes; what is before belongs to another lane.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    def read(self, *, is_final: bool = False) -> list[Scalar]:
        """The scalars of the records that are complete by now.

        A record that is cut off, or whose checksum is wrong, is read again the next time: it may be on its way.

        Args:
            is_final: whether nothing more will be written; a record whose data is wrong is then passed over.

        Returns:
            The scalars, as written; none if the file is gone.
        """
        found: list[Scalar] = []
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                while (end := self._next_record(file, size, found, is_final)) is not None:
                    self._offset = end
        except OSError:
            return found
        return found

    def _next_record(self, file: BinaryIO, size: int, found: list[Scalar], is_final: bool) -> int | None:
        """Where the record at the offset ends, once its scalars are in ``found``; None if it can't be read yet."""
        file.seek(self._offset)
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not _matches(header[:8], header[8:]):
            return None
        (length,) = _LENGTH.unpack(header[:8])
        end = self._offset + _HEADER_BYTES + int(length) + _CHECKSUM.size
        if end > size:
            return None
        if length <= MAX_RECORD_BYTES:
            data = file.read(length)
            if _matches(data, file.read(_CHECKSUM.size)):
                found += scalars_of(data)
            elif not is_final:
                return None
        return end


def scalars_of(event: bytes) -> list[Scalar]:
    """The scalars of one event.

    Args:
        event: in wire format; anything else in it, and a message that is not well-formed, gives none.

    Returns:
        The scalars, whether written as plain values or as tensors of one element.
    """
    step, summaries = 0, []
    try:
        for number, kind, value in _fields(event):
            if (number, kind) == (2, _VARINT):
                step = _signed(value)
            elif (number, kind) == (5, _BYTES):
                summaries.append(value)
        values = [
            value
            for summary in summaries
            for number, kind, value in _fields(summary)
            if (number, kind) == (1, _BYTES)
        ]
        points = [_point(value) for value in values]
    except (IndexError, ValueError, struct.error):
        return []
    return [Scalar(tag, step, value) for tag, value in points if value is not None]


def _point(value: bytes) -> tuple[str, float | None]:
    """Tag and number of one Summary.Value."""
    tag, number_found = "", None
    for number, kind, field in _fields(value):
        if (number, kind) == (1, _BYTES):
            tag = field.decode(errors="replace")
        elif (number, kind) == (2, _FIXED32):
            (number_found,) = struct.unpack("<f", field)
        elif (number, kind) == (8, _BYTES):
            number_found = _only_element(field)
    return tag, number_found


def _only_element(tensor: bytes) -> float | None:
    """The number in a TensorProto that holds one float or double; None for any other."""
    fields = {(number, kind): value for number, kind, value in _fields(tensor)}
    known = _NUMBERS.get(fields.get((1, _VARINT), b""))
    if known is None:
        return None
    form, listed, alone = known
    # As raw content, as a packed list, or as a list of one.
    for place in ((4, _BYTES), (listed, _BYTES), (listed, alone)):
        if len(content := fields.get(place, b"")) == struct.calcsize(form):
            return float(struct.unpack(form, content)[0])
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, wire type and content of each field; a varint's content is its bytes without the marks.

    Raises:
        ValueError: for a wire type that nothing writes any more, or a field that is cut off.
        IndexError: if a varint is cut off.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, kind, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "little")
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(message):
            raise ValueError("a field is cut off")
        yield key >> 3, kind, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _signed(content: bytes) -> int:
    """An int64, which the wire holds as its two's complement."""
    value = int.from_bytes(content, "little")
    return value - (1 << 64) if value >= 1 << 63 else value


def _checksum_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _checksum_table()


def _matches(data: bytes, checksum: bytes) -> bool:
    """Whether a record's checksum, which is masked, is that of its data."""
    if len(checksum) < _CHECKSUM.size:
        return False
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == int(_CHECKSUM.unpack(checksum)[0])
