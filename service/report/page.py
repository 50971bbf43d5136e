"""The whole page: one file without any request to a network, for a browser, an archive or a printer.

What can run in it is fixed by a content security policy: the charts' library and the page's own script, by hash. So
even a text that was wrongly taken for HTML could not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files

from service.report.candidates import Findings
from service.report.curve_figures import curve_figures
from service.report.figures import Figure
from service.report.headline import compared_words, figures_table, headline
from service.report.learning_rate_figure import learning_rate_figures
from service.report.markup import Markup, element, joined
from service.report.norm_figures import norm_figures
from service.report.objective_figure import objective_figure
from service.report.rate_figures import rate_figures
from service.report.tables import cost_table, documents, trials_table
from service.report.wording import moment
from service.schemas import StudyOut, TrialOut


def report_page(
    study: StudyOut, trials: Sequence[TrialOut], *, made_at: datetime, version: str, plotly_script: str
) -> str:
    """A study as one page.

    Args:
        study: ended or not.
        trials: all of its trials, in the order of asking.
        made_at: when the page is made, aware.
        version: of this installation.
        plotly_script: the source of plotly.js, which the page takes along.

    Returns:
        The HTML document.
    """
    findings = Findings(study, tuple(trials))
    title = f"{study.name or study.workload} {study.id[:8]}"
    script = files(__package__).joinpath("page.js").read_text()
    body = element(
        "main",
        element("header", element("h1", title), element("p", _about(study), class_="note")),
        headline(findings),
        figures_table(findings),
        _charts(findings),
        trials_table(findings),
        cost_table(findings),
        documents(findings),
        element("footer", element("p", f"Made {moment(made_at)} by cliptune {version}.")),
    )
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_policy(plotly_script, script)}">'),
        Markup(f'<meta name="generator" content="cliptune {version}">'),
        element("title", f"{title} - cliptune"),
        element("style", Markup(files(__package__).joinpath("page.css").read_text())),
    )
    scripts = Markup(f"<script>{plotly_script}</script><script>{script}</script>")
    return f'<!doctype html>\n<html lang="en">{head}{element("body", body, scripts)}</html>\n'


def _about(study: StudyOut) -> str:
    spec = study.spec
    question = (
        f"{spec.get('num_trials')} settings, {spec.get('num_seeds')} seeds, {spec.get('num_steps')} steps"
    )
    where = f"study {study.id}, {study.state}, submitted {moment(study.created_at)}"
    return f"Workload {study.workload}; {question}; {where}."


def _charts(findings: Findings) -> Markup:
    tried = {trial.setting.method for trial in findings.trials if trial.lanes}
    by_method = [
        (objective_figure(findings, name), rate_figures(findings, name))
        for name in findings.methods
        if name in tried
    ]
    charts = [
        *(_row([first], wide=True) for first, _ in by_method),
        _row(learning_rate_figures(findings), wide=True),
        _row(curve_figures(findings)),
        _row(norm_figures(findings)),
        *(_row(rates) for _, rates in by_method),
    ]
    drawn = [each for each in charts if each]
    if not drawn:
        return element(
            "section", element("h2", "Charts"), element("p", "No setting has a result yet.", class_="note")
        )
    return element(
        "section",
        element("h2", "Charts"),
        element("p", compared_words(findings), class_="note"),
        element(
            "noscript", element("p", "Charts need JavaScript; the tables have their figures.", class_="error")
        ),
        *drawn,
    )


def _row(figures: Sequence[Figure], *, wide: bool = False) -> Markup:
    if not figures:
        return Markup("")
    return element(
        "div", joined(each.to_html() for each in figures), class_="charts wide" if wide else "charts"
    )


def _policy(*scripts: str) -> str:
    """No request, no plug-in, no form, no frame; only these scripts. The charts' library sets styles."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
