"""Outputs of a step of GitHub Actions, to be appended to the file ``$GITHUB_OUTPUT``."""

from __future__ import annotations

from service.ci.formats.outputs import outputs
from service.ci.report import Report


def render(report: Report) -> str:
    """A report as outputs.

    Args:
        report: what the check found.

    Returns:
        A line ``name=value`` per output; no value has a line end, so that none needs a delimiter.
    """
    return "".join(f"{name}={value}\n" for name, value in outputs(report).items())
