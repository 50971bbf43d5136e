"""GitLab's dotenv report: variables for later jobs.

Source:
    https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsdotenv: at most 5 KB and 20 variables, no quotes,
    no comments, no empty lines.
"""

from __future__ import annotations

from service.ci.formats.outputs import outputs
from service.ci.report import Report


def render(report: Report) -> str:
    """A report as variables.

    Args:
        report: what the check found.

    Returns:
        A line ``CLIPTUNE_NAME=value`` per output.
    """
    return "".join(
        f"CLIPTUNE_{name.upper().replace('-', '_')}={value}\n" for name, value in outputs(report).items()
    )
