"""JUnit XML: a test case per value, for the test widgets of GitLab, Jenkins and others.

Source:
    The dialect of Jenkins' xUnit plugin, ``junit-10.xsd``, which GitLab reads too.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from service.ci.formats.texts import place, visible
from service.ci.judgement import CheckVerdict, Judgement, Severity
from service.ci.outage import Outage
from service.ci.report import Refusal, Report
from service.ci.tuned import Tuned

SUITE = "cliptune check"
#: Verdicts without a statement about the value: the test did not run.
_SKIPPED = (CheckVerdict.INCONCLUSIVE, CheckVerdict.NO_RECOMMENDATION)


def render(report: Report) -> str:
    """A report as JUnit XML.

    Args:
        report: what the check found.

    Returns:
        The document. A value that fails is a failure, one that could not be compared is skipped, a file that could not
        be read is an error, and so are an outage that counts and a study without an answer; other warnings pass, with
        their sentence as output.
    """
    counts_as = "error" if report.on_service_error == "fail" else "skipped"
    cases = [_outage(report.outage, counts_as)] if report.outage is not None else []
    cases += [_study(report.study)] if report.study is not None else []
    cases += [_judgement(each) for each in report.judgements]
    cases += [_refusal(each, "skipped" if report.exit_zero else "error") for each in report.refusals]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {name: str(sum(case.find(tag) is not None for case in cases)) for name, tag in counted.items()}
    totals = {"name": SUITE, "tests": str(len(cases)), **counts}
    # The root of this dialect has no count of skipped cases.
    root = Element("testsuites", {name: value for name, value in totals.items() if name != "skipped"})
    suite = SubElement(root, "testsuite", totals)
    suite.extend(cases)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _judgement(judgement: Judgement) -> Element:
    checked = judgement.checked
    where = place(checked.file, checked.line, is_implicit=checked.is_implicit)
    case = _case(checked.file, checked.key)
    body = f"{where}: {judgement.sentence} {judgement.study_url}".rstrip()
    if judgement.severity is Severity.FAILURE:
        _outcome(case, "failure", judgement.title, str(judgement.verdict), body)
    elif judgement.verdict in _SKIPPED:
        _outcome(case, "skipped", judgement.sentence, str(judgement.verdict), "")
    else:
        SubElement(case, "system-out").text = visible(body)
    return case


def _study(study: Tuned) -> Element:
    case = _case("study", study.workload)
    body = f"{study.subject}: {study.sentence} {study.url}"
    if study.severity is Severity.FAILURE:
        _outcome(case, "error", study.title, study.verdict, body)
    elif study.severity is Severity.WARNING:
        _outcome(case, "skipped", study.sentence, study.verdict, "")
    else:
        SubElement(case, "system-out").text = visible(body)
    return case


def _refusal(refusal: Refusal, tag: str) -> Element:
    case = _case(refusal.file, "clip value")
    where = place(refusal.file, refusal.line)
    _outcome(case, tag, refusal.sentence, refusal.code, f"{where}: {refusal.sentence}")
    return case


def _outage(outage: Outage, tag: str) -> Element:
    case = _case("service", "recommendations")
    _outcome(case, tag, outage.title, outage.code, outage.sentence)
    return case


def _case(file: str, name: str) -> Element:
    return Element("testcase", classname=visible(file), name=visible(name))


def _outcome(case: Element, tag: str, message: str, kind: str, body: str) -> None:
    SubElement(case, tag, message=visible(message), type=visible(kind)).text = visible(body) or None
