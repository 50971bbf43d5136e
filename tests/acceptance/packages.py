"""A package of a user's, built and installed for real into a folder, with entry points."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def install_package(folder: Path, module: str, *, entry_points: Mapping[str, str]) -> Path:
    """Install ``our-workloads`` with the module ``ours.model``; the folder to be put on PYTHONPATH."""
    project, target = folder / "project", folder / "installed"
    (project / "ours").mkdir(parents=True)
    lines = [
        "[build-system]",
        'requires = ["setuptools"]',
        'build-backend = "setuptools.build_meta"',
        "[project]",
        'name = "our-workloads"',
        'version = "1.0"',
        '[project.entry-points."cliptune.workloads"]',
        *(f'"{name}" = "{value}"' for name, value in entry_points.items()),
        "[tool.setuptools]",
        'packages = ["ours"]',
    ]
    (project / "pyproject.toml").write_text("\n".join(lines))
    (project / "ours" / "__init__.py").touch()
    (project / "ours" / "model.py").write_text(module)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*command, "--target", str(target), str(project)], check=True)
    return target
