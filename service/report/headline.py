"""The top of the page: the answer in a sentence, what to paste, and every figure it rests on."""

from __future__ import annotations

from service.report.candidates import Findings
from service.report.markup import NONE, TIMES, Markup, element
from service.report.tables import Cell, table
from service.report.wording import (
    difference_interval,
    difference_words,
    estimate_interval,
    estimate_words,
    failure_interval,
    failure_words,
    number,
    percent,
    role_words,
    setting_words,
    span,
)
from service.schemas import RecommendationOut, StudyOut
from service.states import JobState
from tuner.evidence import Verdict
from tuner.spec import ClipSetting

_VERDICTS = {
    Verdict.CLIP: ("Clip", "Clipping helps here: train with {setting}."),
    Verdict.NO_DIFFERENCE: (
        "No difference",
        "Clipping makes no difference that matters here: train with {setting}.",
    ),
    Verdict.DO_NOT_CLIP: ("Do not clip", "Clipping does not help here: train with {setting}."),
    Verdict.INCONCLUSIVE: ("Inconclusive", "Not settled yet; the best seen is {setting}."),
}
#: What a study without an answer is called.
_STATES = {
    JobState.QUEUED: "Waiting",
    JobState.RUNNING: "Running",
    JobState.SUCCEEDED: "Done",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}

Row = tuple[str, str, str, str]


def headline(findings: Findings) -> Markup:
    """Verdict, reason, error, progress and snippets.

    Args:
        findings: the study.

    Returns:
        A section.
    """
    study, answer = findings.study, findings.study.result
    parts: list[str] = []
    if answer is None:
        parts.append(_badge("open", _STATES[study.state]))
        parts.append(element("p", _progress(study), class_="answer"))
    else:
        badge, sentence = _VERDICTS[answer.verdict]
        parts.append(_badge(answer.verdict, badge))
        words = sentence.format(setting=setting_words(answer.setting))
        parts.append(element("p", words, class_="answer"))
        parts.append(element("p", answer.reason))
        if not study.done:
            parts.append(element("p", f"More is being trained: {_progress(study)}", class_="note"))
        if answer.verdict is Verdict.INCONCLUSIVE and answer.more_seeds is not None:
            parts.append(
                element("p", f"About {answer.more_seeds} more fresh seeds would settle it.", class_="note")
            )
    if study.error is not None:
        parts.append(element("p", f"{study.error.detail.strip()} [{study.error.code}]", class_="error"))
    if answer is not None and answer.snippets:
        parts.append(_snippets(answer))
    return element("section", *parts, class_="headline")


def _badge(kind: str, words: str) -> Markup:
    return element("span", words, class_=f"badge {kind.replace('_', '-')}")


def _progress(study: StudyOut) -> str:
    wanted = study.spec.get("num_trials")
    words = f"{study.num_trials_ended} of {wanted} settings have a result"
    return f"{words}." if study.done else f"{words}; this page shows what is known so far."


def _snippets(answer: RecommendationOut) -> Markup:
    label = "To paste"
    if answer.verdict is Verdict.INCONCLUSIVE:
        label = "To paste, if it can't wait"
    rows = [
        element("div", element("dt", framework), element("dd", element("pre", element("code", snippet))))
        for framework, snippet in answer.snippets.items()
    ]
    return element("div", element("h2", label), element("dl", *rows, class_="snippets"))


def figures_table(findings: Findings) -> Markup:
    """What the answer rests on: figure, uncertainty, comparison.

    Args:
        findings: the study.

    Returns:
        A section; empty while there is no answer.
    """
    answer = findings.study.result
    if answer is None:
        return Markup("")
    rows = [
        *_setting_rows(answer),
        *_objective_rows(answer, findings.current),
        *_effect_rows(answer),
        *_norm_rows(answer, findings),
    ]
    return element(
        "section",
        element("h2", "What it rests on"),
        table(
            ("", "figure", "uncertainty", "to compare with"),
            [tuple(Cell(each) for each in row) for row in rows],
            class_="figures",
        ),
        element("p", _seeds_words(answer), class_="note"),
    )


def _seeds_words(answer: RecommendationOut) -> str:
    words = f"The objective is {answer.objective}; lower is better. "
    if answer.num_fresh_seeds:
        words += f"It was judged on {answer.num_fresh_seeds} fresh seeds, which the search never saw."
    else:
        words += "It was judged on the search's own seeds; the intervals allow for the choice among settings."
    words += " Intervals are 95 %."
    return f"{words} End of the search: {answer.search_end}." if answer.search_end else words


def _setting_rows(answer: RecommendationOut) -> list[Row]:
    if answer.best is None:
        return [("best clip setting", "none: every one diverged", NONE, NONE)]
    name = "best clip setting" if answer.setting != answer.best else "setting"
    good = f"equally good: {span(*answer.interval)}" if answer.interval else NONE
    kappa = (
        NONE if answer.kappa is None else f"{number(answer.kappa, 3)} {TIMES} the median norm of the probe"
    )
    rows = [(name, setting_words(answer.best), good, kappa)]
    if answer.step_cap is not None:
        words = f"learning rate {TIMES} threshold: no step is longer"
        rows.append(("longest step", number(answer.step_cap, 3), NONE, words))
    return rows


def _objective_rows(answer: RecommendationOut, current: ClipSetting | None) -> list[Row]:
    name = answer.objective
    rows: list[Row] = []
    best = f"best: {estimate_words(answer.value)}"
    if answer.best is not None:
        words = f"off: {estimate_words(answer.off)}"
        rows.append((f"{name}, best", estimate_words(answer.value), estimate_interval(answer.value), words))
    rows.append((f"{name}, off", estimate_words(answer.off), estimate_interval(answer.off), NONE))
    for words, found in (
        ("off", answer.difference),
        ("today's value", answer.against_current),
        ("off at the matched learning rate", answer.against_matched),
    ):
        if found is not None and not (words == "today's value" and answer.best == current):
            row = f"{name}, best minus {words}"
            rows.append((row, difference_words(found), difference_interval(found), "0: no difference"))
    if answer.matched is not None:
        row = f"{name}, off at the matched learning rate"
        rows.append((row, estimate_words(answer.matched), estimate_interval(answer.matched), best))
    return rows


def _effect_rows(answer: RecommendationOut) -> list[Row]:
    rows: list[Row] = []
    if answer.failures is not None:
        off = f"off: {failure_words(answer.off_failures)} ({failure_interval(answer.off_failures)})"
        rows.append(
            ("failed runs, best", failure_words(answer.failures), failure_interval(answer.failures), off)
        )
    if answer.clip_fraction is not None and answer.mean_scale is not None:
        rows.append(("steps clipped, best", percent(answer.clip_fraction), NONE, "off: 0 %"))
        rows.append(("mean factor on the gradient, best", number(answer.mean_scale, 3), NONE, "off: 1"))
    lost = f"{answer.num_diverged_trials} of {answer.num_trials}"
    rows.append(("settings with a diverged seed", lost, NONE, NONE))
    return rows


def _norm_rows(answer: RecommendationOut, findings: Findings) -> list[Row]:
    """Norms under the best setting, beside those of the probe."""
    if answer.norms is None:
        return []
    probe = (findings.study.reference or {}).get("l2_norm") or {}
    rows: list[Row] = []
    for words, name in (("median", "median"), ("90 % quantile", "q90"), ("largest", "max")):
        before = f"probe: {number(probe[name], 3)}" if name in probe else NONE
        rows.append(
            (f"gradient norm before clipping, {words}", number(getattr(answer.norms, name), 3), NONE, before)
        )
    if answer.spike_ratio is not None:
        rows.append(("spike ratio, largest / median", number(answer.spike_ratio, 3), NONE, "1: all equal"))
    if answer.tail_index is not None:
        words = "below about 2: no finite variance"
        rows.append(("tail index of the norms", number(answer.tail_index, 3), NONE, words))
    return rows


def compared_words(findings: Findings) -> str:
    """The settings that the charts compare, as a sentence."""
    named = [role_words(role, candidate.setting) for role, candidate in findings.compared]
    if findings.best is not None and findings.best.setting == findings.current:
        named[0] += " (which is today's value)"
    return f"The charts compare {'; '.join(named)}." if named else ""
