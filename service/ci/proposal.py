"""The words of a proposed change: a commit's message, and the body of a pull request with the evidence. Pure."""

from __future__ import annotations

import re
import textwrap

from service.ci.formats.markdown_report import code, link, text
from service.ci.formats.texts import visible
from service.ci.judgement import Judgement
from service.ci.rewrite import Rewrite
from service.ci.sentences import number

#: Columns of a commit's message, and the longest first line.
_COLUMNS, _SUBJECT = 72, 100
_BACKTICKS = re.compile("`+")


def commit_message(rewrite: Rewrite, judgement: Judgement) -> str:
    """What the commit of a change says.

    Args:
        rewrite: the change.
        judgement: of the value as it was.

    Returns:
        A subject, the evidence, and where the study is; without control characters.
    """
    checked = judgement.checked
    to = rewrite.written or "nothing, which is off"
    subject = visible(f"Set {checked.key} to {to} in {checked.file}", _SUBJECT)
    paragraphs = ["\n".join(textwrap.wrap(visible(judgement.sentence), _COLUMNS, break_on_hyphens=False))]
    if judgement.study_url:
        paragraphs.append(f"Study: {visible(judgement.study_url)}")
    return "\n\n".join([subject, *paragraphs]) + "\n"


def proposal_body(rewrite: Rewrite, judgement: Judgement) -> str:
    """The body of a pull request with a change.

    Args:
        rewrite: the change.
        judgement: of the value as it was.

    Returns:
        Markdown: the diff, the verdict, the recommended range, the evidence, and a link to the study.
    """
    checked = judgement.checked
    rows = [("value now", f"{code(checked.spelled)} ({text(str(judgement.verdict))})")]
    rows.append(("recommended", code(judgement.recommended_spelled)))
    if judgement.low is not None and judgement.high is not None:
        rows.append(("as good", f"{number(judgement.low)} to {number(judgement.high)}"))
    evidence = judgement.evidence
    if (
        evidence is not None
        and evidence.mean is not None
        and evidence.low is not None
        and evidence.high is not None
    ):
        seeds = "fresh" if evidence.is_fresh else "search"
        rows.append(
            (
                "measured",
                f"{text(str(evidence.setting))} against {text(str(evidence.baseline))}: {text(judgement.objective)} "
                f"{evidence.mean:+.3g} (95 % interval {evidence.low:+.3g} to {evidence.high:+.3g}, "
                f"{evidence.num_pairs} paired {seeds} seeds; above 0 is worse)",
            )
        )
    if judgement.study_id:
        study = f"{code(judgement.study_id[:8])} of {text(judgement.workload)}, {judgement.num_seeds} seeds"
        rows.append(("study", f"{study}{link(judgement.study_url)}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"### {text(judgement.title[:1].upper() + judgement.title[1:])}\n\n{text(judgement.sentence)}\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n{_fenced(rewrite.diff)}"
    )


def _fenced(diff: str) -> str:
    """A diff as a block of code, between fences that are longer than any in it."""
    longest = max((len(each) for each in _BACKTICKS.findall(diff)), default=0)
    fence = "`" * max(3, longest + 1)
    # As it is, but for what a terminal or a viewer would act on.
    lines = (visible(line.replace("\t", "    ")) for line in diff.splitlines())
    return f"{fence}diff\n" + "\n".join(lines) + f"\n{fence}\n"
