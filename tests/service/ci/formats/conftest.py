"""Reports that every format is written from: a usual one, and those that try to break a format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.ci.outage import outage
from service.ci.report import Refusal, Report, report
from service.errors import UnavailableError

#: Texts that end, begin or forge something in one of the formats.
HOSTILE = (
    "a\n::error file=x::forged",
    "a\r\n##[error]forged",
    "::set-output name=verdict::inside",
    "##[stop-commands]x",
    "a%0A::error::forged,line=1::b",
    "a|b|c\\|d",
    "``` `code` **bold** ~~x~~ <details><summary>x</summary>",
    "<script>alert(1)</script><!-- cliptune-check -->]]>&amp;&#10;",
    "![x](https://evil.example/x.png) [y](javascript:alert(1)) www.evil.example https://evil.example",
    "@everyone #1 GH-2 :tada: $x^2$ owner/repo#3",
    '"quoted" \'quoted\' \\ "} 7\n# EOF',
    "$(touch x) `touch x` ${{ secrets.TOKEN }} $CI_JOB_TOKEN",
    "\x00\x01\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x85\x9b",
    "\u202egnp.\u202c\u2028\u2029\u200b\ufeff\ufffe\U000e0001",
    "undecodable\udcff\udc80 and lone \ud800",
    "\u6f22\u5b57 e\u0301 \U0001f600",
    "=cmd|' /C calc'!A0",
    "x" * 100_000,
    "\u6f22" * 50_000,
    "",
    " ",
)


class Reports:
    """Builders of reports."""

    hostile = HOSTILE
    outage = outage(UnavailableError("no service answers at http://127.0.0.1:1", code="service_unreachable"))

    def __init__(self, findings: Any) -> None:
        self._findings = findings

    def usual(self, **changes: Any) -> Report:
        """A value that fails, one to look at, one that is fine, and a file that can't be read."""
        judged = self._findings.judged
        refusal = Refusal(
            file="conf/auto.json", line=7, code="auto_value", sentence="gradient_clipping is auto."
        )
        values = {"refusals": [refusal]} | changes
        return report(
            [
                judged("global_norm:0.35", file="conf/good.yaml"),
                judged("global_norm:1", file="conf/bad.yaml"),
                judged(
                    "value:0.5",
                    file="conf/other.yaml",
                    key="trainer.gradient_clip_val",
                    framework="Lightning",
                ),
            ],
            **values,
        )

    def good(self) -> Report:
        """One value, which is fine."""
        return report([self._findings.judged("global_norm:0.35")])

    def large(self, count: int, setting: str = "global_norm:1") -> Report:
        """A value per file."""
        judged = self._findings.judged
        return report([judged(setting, file=f"conf/{number:05}.yaml") for number in range(count)])

    def poisoned(self, text: str) -> Report:
        """The same text in every place that a config, a path or a service fills."""
        judged = self._findings.judged(
            file=text or "a.yaml", key=text, spelled=text, framework=text, off_spelled=text
        )
        values = [
            replace(
                judged,
                sentence=f"{text} is outside: {text}",
                recommended_spelled=text,
                objective=text,
                workload=text,
                study_id=text,
                study_url=url,
            )
            for url in (text, f"https://cliptune.example/{text}")
        ]
        fine = self._findings.judged("global_norm:0.35", file=text or "a.yaml", key=text, spelled=text)
        refusal = Refusal(file=text or "a.yaml", line=1, code="auto_value", sentence=text)
        down = outage(UnavailableError(text, code="service_unreachable"))
        return report([*values, fine], refusals=[refusal], outage=down)


@pytest.fixture
def reports(findings: Any) -> Reports:
    return Reports(findings)
