"""Find the configs of a repository that may hold a clip value, without parsing any.

A file is worth reading if it says one of the keys at all: a search of its bytes, a few microseconds per file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from service.ci.frameworks import FRAMEWORKS
from service.ci.source import SUFFIXES

#: Largest file that a sweep looks into, in bytes: a larger one is data.
MAX_SWEPT_BYTES = 1_000_000
#: Folders of other people's files, besides those that begin with a dot.
_SKIPPED = frozenset(
    {"node_modules", "site-packages", "__pycache__", "venv", "build", "dist", "wandb", "mlruns"}
)
#: Lock files, ours among them, repeat the configs that they belong to.
_LOCKS = (".lock.json", "-lock.json")

_KEYS = sorted(
    {
        place.name
        for row in FRAMEWORKS.values()
        for place in row.places
        if not place.path[0].endswith("()") and "python" not in place.formats
    }
)
_PLAIN = re.compile("|".join(re.escape(key) for key in _KEYS).encode())
#: In Python a config is a module of assignments; a call's argument is code, which is checked when it is named.
_PYTHON = re.compile(rb"(?m)^grad_clip\s*[=:]|^optim_wrapper\s*=.*$(?s:.*?)clip_grad")


def find_configs(root: Path) -> Iterator[Path]:
    """The files below a folder that may hold a clip value.

    Args:
        root: the folder; hidden folders, installed packages and symbolic links to folders are passed over.

    Yields:
        Paths, sorted within each folder.
    """
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(files):
            is_config = os.path.splitext(name)[1].lower() in SUFFIXES and not name.endswith(_LOCKS)
            if is_config and _may_hold(os.path.join(folder, name)):
                yield Path(folder, name)


def _may_hold(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SWEPT_BYTES + 1)
    except OSError:
        return False
    pattern = _PYTHON if path.endswith(".py") else _PLAIN
    return len(content) <= MAX_SWEPT_BYTES and pattern.search(content) is not None
