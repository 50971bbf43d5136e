"""Whether a process still runs, asked of the system."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    # The second, if it goes between the opening and the reading.
    except (FileNotFoundError, ProcessLookupError):
        return False
