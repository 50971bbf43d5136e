"""Where a lane's metrics are read from besides its output: a file of JSON lines, or a folder of TensorBoard events."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from service.agent.errors import CommandError
from service.agent.event_files import EventFile
from service.agent.lines import LineSplitter
from service.agent.metrics import Metrics

#: How much of a file is read at a time, in bytes.
_CHUNK_BYTES = 262_144
#: How much of what was read is compared, to notice a file that was written anew, in bytes.
_WITNESS_BYTES = 256

_TENSORBOARD = "tensorboard:"


class Source(Protocol):
    """Something that a training writes and that is looked at now and then."""

    def read(self, metrics: Metrics, *, is_final: bool = False) -> None:
        """Take over what is new.

        Args:
            metrics: of the lane.
            is_final: whether the training has ended.
        """


class JsonLinesFile:
    """A file of JSON lines that may not exist yet, grows, or is written anew; what it holds already is another lane's.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._splitter = LineSplitter()
        # The last bytes before the offset: if they change, the file is another one.
        self._offset, self._witness = 0, b""
        try:
            with path.open("rb") as file:
                self._offset = file.seek(0, os.SEEK_END)
                file.seek(max(0, self._offset - _WITNESS_BYTES))
                self._witness = file.read(min(self._offset, _WITNESS_BYTES))
        except OSError:
            return

    def read(self, metrics: Metrics, *, is_final: bool = False) -> None:
        """Take over the lines that are complete; at the end, the last one as well."""
        try:
            with self._path.open("rb") as file:
                self._go_on(file, metrics)
        except OSError:
            return
        if is_final:
            metrics.read_line(self._splitter.rest())

    def _go_on(self, file: BinaryIO, metrics: Metrics) -> None:
        file.seek(max(0, self._offset - len(self._witness)))
        if file.read(len(self._witness)) != self._witness:
            self._splitter.rest()
            self._offset, self._witness = 0, b""
        file.seek(self._offset)
        while chunk := file.read(_CHUNK_BYTES):
            self._offset += len(chunk)
            self._witness = (self._witness + chunk)[-_WITNESS_BYTES:]
            for line in self._splitter.feed(chunk):
                metrics.read_line(line)


class EventFolder:
    """A folder in which TensorBoard event files appear, at any depth; what they hold already is another lane's.

    Args:
        folder: may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, EventFile] = {}
        for path in self._paths():
            try:
                self._files[path] = EventFile(path, path.stat().st_size)
            except OSError:
                continue

    def read(self, metrics: Metrics, *, is_final: bool = False) -> None:
        """Take over the scalars of the records that are complete."""
        for path in self._paths():
            file = self._files.setdefault(path, EventFile(path))
            for scalar in file.read(is_final=is_final):
                if scalar.step >= 0:
                    metrics.add(scalar.tag, scalar.step, scalar.value)

    def _paths(self) -> list[Path]:
        """The event files, the oldest first: their names begin with the time."""
        # Unlike a glob, it does not mind folders that a training removes meanwhile.
        walked = os.walk(self._folder)
        found = [Path(folder, name) for folder, _, names in walked for name in names if "tfevents" in name]
        return sorted(found, key=lambda path: (path.name, path))


@dataclass(frozen=True)
class MetricsPlace:
    """Where a lane's metrics are.

    Attributes:
        kind: ``stdout``, ``file`` or ``tensorboard``.
        path: of the file or folder, with placeholders; empty for ``stdout``.
    """

    kind: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> MetricsPlace:
        """Read the option.

        Args:
            text: ``stdout``, ``tensorboard:FOLDER`` or a file.

        Returns:
            The place.

        Raises:
            CommandError: if a name is missing.

        Example:
            >>> MetricsPlace.parse("tensorboard:{output}/runs")
            MetricsPlace(kind='tensorboard', path='{output}/runs')
        """
        if text == "stdout":
            return cls("stdout")
        kind, path = (
            ("tensorboard", text.removeprefix(_TENSORBOARD))
            if text.startswith(_TENSORBOARD)
            else ("file", text)
        )
        if not path:
            raise CommandError(
                f"--metrics must be stdout, a file of JSON lines or tensorboard:FOLDER, got {text!r}"
            )
        return cls(kind, path)

    def open(self, path: str) -> Source | None:
        """What to look at now and then while a lane trains.

        Args:
            path: the path with its placeholders filled in.

        Returns:
            The source; None if metrics come in the output.
        """
        if self.kind == "stdout":
            return None
        return JsonLinesFile(Path(path)) if self.kind == "file" else EventFolder(Path(path))
