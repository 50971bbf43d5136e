"""Read back what monitors wrote, from their own files."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

#: By figure: the values by step.
Figures = dict[str, dict[int, float]]


def tensorboard_figures(folder: Path) -> Figures:
    """All scalars of a run's event files."""
    found: Figures = defaultdict(dict)
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, position = file.read_bytes(), 0
        while position < len(content):
            # TFRecord: length, its checksum, the event, its checksum.
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 12 + length + 4
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return dict(found)


def wandb_run(folder: Path) -> tuple[str, str, Figures]:
    """Project, name and figures of the one run in a folder, which has ended."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    # A process of W&B's own writes the file, and the run's end may return before its last block is there.
    deadline = time.monotonic() + 60
    while not any(each.WhichOneof("record_type") == "exit" for each in _records(file.read_bytes())):
        assert time.monotonic() < deadline, "the run's end was never written"
        time.sleep(0.02)
    project, name = "", ""
    found: Figures = defaultdict(dict)
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            project, name = record.run.project, record.run.display_name
        elif kind == "history":
            row = {
                each.key or each.nested_key[0]: json.loads(each.value_json) for each in record.history.item
            }
            for key, value in row.items():
                if not key.startswith("_") and key != "step":
                    found[key][int(row["step"])] = value
    return project, name, dict(found)


def _records(content: bytes) -> list[Record]:
    """W&B's file: seven bytes, then LevelDB's log format with blocks of 32 kB."""
    found, part, position = [], b"", 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found
