"""Tables of the page: all trials, what it cost, what was asked, where the figures come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from service.report.candidates import Findings, trial_estimate
from service.report.markup import NONE, Markup, element
from service.report.wording import (
    estimate_interval,
    failure_words,
    flattened,
    moment,
    number,
    percent,
    threshold,
)
from service.schemas import TrialOut
from tuner.records import mean_known


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it shows.
        is_number: whether it lines up with those above and below at the right.
    """

    text: str
    is_number: bool = False


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], *, class_: str = "") -> Markup:
    """An HTML table; the first cell of a row is its heading.

    Args:
        heads: of the columns.
        rows: as many cells each.
        class_: for the style sheet.

    Returns:
        The table in a block that scrolls when it is too wide.
    """
    written = list(rows)
    sides = [all(row[column].is_number for row in written) and bool(written) for column in range(len(heads))]
    head = element(
        "tr",
        *(
            element("th", text, scope="col", class_="number" if side else "")
            for text, side in zip(heads, sides, strict=True)
        ),
    )
    body = [
        element(
            "tr",
            element("th", row[0].text, scope="row", class_=_class(row[0])),
            *(element("td", cell.text, class_=_class(cell)) for cell in row[1:]),
        )
        for row in written
    ]
    whole = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", whole, class_="scroll")


def trials_table(findings: Findings) -> Markup:
    """Every trial, the best first; those without a result last."""
    heads = (
        "trial",
        "stage",
        "method",
        "threshold",
        "learning rate",
        "state",
        findings.objective,
        "standard error",
        "95 % interval",
        "diverged",
        "failed",
        "clipped",
        "mean scale",
        "median norm",
        "steps",
        "seconds",
    )
    ordered = sorted(
        findings.trials, key=lambda each: (math.inf if each.mean is None else each.mean, each.number)
    )
    rows = [_trial_row(trial, findings) for trial in ordered]
    return element(
        "section",
        element("h2", "All trials"),
        element(
            "p",
            "The lowest objective first. Learning rate: factor on the workload's own. Clipped: share of steps. Median "
            "norm: before clipping, median over seeds. Steps and seconds: sums over seeds, shared steps counted once.",
            class_="note",
        ),
        table(heads, rows, class_="trials"),
        *_errors(findings.trials),
    )


def _trial_row(trial: TrialOut, findings: Findings) -> tuple[Cell, ...]:
    lanes = trial.lanes
    estimate = trial_estimate(trial)
    norms = [lane.norms.median for lane in lanes if lane.norms is not None]
    texts = (
        ("off" if trial.setting.is_off else trial.setting.method, False),
        (threshold(trial.setting.threshold), True),
        (f"{trial.setting.learning_rate_scale:g}", True),
        (str(trial.state), False),
        (number(trial.mean), True),
        (number(trial.standard_error, 2), True),
        (estimate_interval(estimate), False),
        (f"{trial.num_diverged} of {len(lanes)}" if lanes else NONE, True),
        (failure_words(findings.failures([trial])).removesuffix(" runs"), True),
        (percent(trial.clip_fraction), True),
        (number(mean_known(lane.mean_scale for lane in lanes), 3), True),
        (number(median(norms), 3) if norms else NONE, True),
        (f"{_own_steps(trial):,}" if lanes else NONE, True),
        (f"{sum(lane.seconds for lane in lanes):.2f}" if lanes else NONE, True),
    )
    return (
        Cell(str(trial.number), True),
        Cell(str(trial.stage)),
        *(Cell(text, is_number) for text, is_number in texts),
    )


def _errors(trials: Iterable[TrialOut]) -> list[Markup]:
    return [
        element("p", f"Trial {trial.number} ({trial.setting}) failed: {trial.error}", class_="error")
        for trial in trials
        if trial.error
    ]


def cost_table(findings: Findings) -> Markup:
    """What the study took: from its answer where there is one, else of the trials that ended."""
    answer, study = findings.study.result, findings.study
    lanes = [lane for trial in findings.trials for lane in trial.lanes]
    full = study.spec.get("num_steps") or 1
    steps = answer.lane_steps if answer else sum(map(_own_steps, findings.trials))
    runs = answer.full_runs if answer else steps / full
    seconds = answer.train_seconds if answer else sum(lane.seconds for lane in lanes)
    rows = [
        ("optimizer steps over all lanes", f"{steps:,}", "steps shared with off count once"),
        ("the same in full runs of one seed", f"{runs:.1f}", f"{full:,} steps each"),
        ("time in training steps", f"{seconds:.1f} s", "wall time, summed over lanes"),
        ("settings with a result", f"{study.num_trials_ended}", f"{study.spec.get('num_trials')} asked for"),
        ("lanes with a result", f"{len(lanes)}", "one setting under one seed"),
        ("submitted", moment(study.created_at), ""),
        ("started", moment(study.started_at), ""),
        ("ended", moment(study.finished_at), ""),
    ]
    return element(
        "section",
        element("h2", "What it cost"),
        table(("", "amount", ""), [tuple(map(Cell, row)) for row in rows]),
    )


def _own_steps(trial: TrialOut) -> int:
    return sum(lane.num_steps - lane.num_shared_steps for lane in trial.lanes)


def documents(findings: Findings) -> Markup:
    """The question, the probe and the provenance, field by field."""
    study = findings.study
    identity: dict[str, Any] = {
        "study": study.id,
        "name": study.name or NONE,
        "workload": study.workload,
        "fingerprint": study.fingerprint,
        "state": str(study.state),
        "attempt": study.attempt,
    }
    parts: list[tuple[str, Mapping[str, Any]]] = [
        ("The question", identity | study.spec),
        ("The probe: gradients at frozen weights, before clipping", study.reference or {}),
        ("Where the figures come from", study.result.provenance if study.result else {}),
    ]
    return element(
        "section",
        *(
            element(
                "details",
                element("summary", title),
                table(("field", "value"), [(Cell(name), Cell(value)) for name, value in flattened(document)]),
                open=True,
            )
            for title, document in parts
            if document
        ),
    )


def _class(cell: Cell) -> str:
    return "number" if cell.is_number else ""
