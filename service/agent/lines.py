"""Split a stream of bytes into lines without ever holding more than one of bounded length."""

from __future__ import annotations

#: Longest line that is looked at, in bytes; a longer one is passed over.
MAX_LINE_BYTES = 1_000_000


class LineSplitter:
    r"""Collects chunks and gives the complete lines in them; a line over the limit is passed over.

    Args:
        max_bytes: longest line kept, without its end.

    Example:
        >>> splitter = LineSplitter(max_bytes=4)
        >>> splitter.feed(b"one\ntoo lo"), splitter.feed(b"ng\nend"), splitter.rest()
        ([b'one'], [], b'end')
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._is_too_long = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take what was read.

        Args:
            chunk: any bytes.

        Returns:
            The lines that end in it, without their line feeds.
        """
        *lines, rest = (self._rest + chunk).split(b"\n")
        if lines and self._is_too_long:
            del lines[0]
            self._is_too_long = False
        self._is_too_long = self._is_too_long or len(rest) > self._max_bytes
        self._rest = b"" if self._is_too_long else rest
        return [line for line in lines if len(line) <= self._max_bytes]

    def rest(self) -> bytes:
        """The line that the stream ended in, empty if there is none; the splitter is as new afterwards."""
        rest, self._rest, self._is_too_long = self._rest, b"", False
        return rest
