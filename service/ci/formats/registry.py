"""The formats of a report: one line each; a format's module is imported when a report is written in it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from service.ci.report import Report
from service.errors import ServiceError

#: ``module:function`` by the name that ``--format`` takes.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "table": "table_report:render",
        "plain": "plain_report:render",
        "json": "json_report:render",
        "markdown": "markdown_report:render",
        "summary": "markdown_report:render_summary",
        "junit": "junit_report:render",
        "github": "github_report:render",
        "github-output": "github_output_report:render",
        "gitlab-codequality": "codequality_report:render",
        "gitlab-annotations": "annotations_report:render",
        "dotenv": "dotenv_report:render",
        "metrics": "metrics_report:render",
    }
)


class UnknownFormatError(ServiceError, LookupError):
    """No format has this name."""

    code = "unknown_format"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no format {name!r}: use one of {', '.join(FORMATS)}")


def default_format(*, is_terminal: bool, is_github: bool) -> str:
    """The format where none was asked for.

    Args:
        is_terminal: whether a person reads at a terminal.
        is_github: whether a runner of GitHub Actions reads.

    Returns:
        A name.

    Example:
        >>> default_format(is_terminal=False, is_github=True)
        'github'
    """
    if is_github:
        return "github"
    return "table" if is_terminal else "plain"


def render(report: Report, format_name: str) -> str:
    """Write a report.

    Args:
        report: what the check found.
        format_name: one of `FORMATS`.

    Returns:
        Text that ends with a line end, and that UTF-8 can hold.

    Raises:
        UnknownFormatError: if there is no such format.
    """
    if format_name not in FORMATS:
        raise UnknownFormatError(format_name)
    module, _, function = FORMATS[format_name].partition(":")
    text: str = getattr(import_module(f"service.ci.formats.{module}"), function)(report)
    return text
