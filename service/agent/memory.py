"""Whether the system killed processes of this container or session for memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

#: Where the kernel's control groups are mounted.
_MOUNT = Path("/sys/fs/cgroup")


def num_memory_kills(mount: Path = _MOUNT, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Processes of this control group that were killed because memory ran out, since it was made.

    Args:
        mount: where control groups are mounted.
        membership: the kernel's list of the groups of this process.

    Returns:
        The count; None where nobody can tell.
    """
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in groups:
        inside = path.lstrip("/")
        if not controllers:
            files = [mount / inside / "memory.events", mount / "memory.events"]
        elif "memory" in controllers.split(","):
            files = [
                mount / "memory" / inside / "memory.oom_control",
                mount / "memory" / "memory.oom_control",
            ]
        else:
            continue
        for file in files:
            if (count := _count_in(file)) is not None:
                return count
    return None


def _count_in(file: Path) -> int | None:
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(row[1]) for row in rows if row[0] == "oom_kill"), None)
