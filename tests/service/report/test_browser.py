"""The page in a real browser: every chart is drawn, nothing complains, nothing that a user named runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from service.report.page import report_page

UNPLEASANT = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="session")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "no browser (chromium): install it to look at the report"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def shown(browser: str, page: str, folder: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran, and what they wrote to the console."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1240,3000",
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
def test_charts_are_drawn_and_nothing_complains(browser: str, documents: Any, tmp_path: Path) -> None:
    answer = documents.answer(objective=UNPLEASANT, reason=UNPLEASANT)
    study = documents.study(
        answer, name=UNPLEASANT, spec={"learning_rate_low": 0.1, "learning_rate_high": 10.0}
    )
    trials = [*documents.trials(), documents.trial(8, "value:0.5@2", [1.8, 1.9])]
    page = report_page(study, trials, made_at=documents.when, version="9.8.7", plotly_script=get_plotlyjs())
    elements, console = shown(browser, page, tmp_path)
    assert console == []
    assert elements.count('data-drawn="true"') == page.count("data-figure=") == 11
    assert elements.count('class="main-svg"') >= 11
    assert "equally good: 0.125 \u2013 1" in elements
    title = re.search(r"<title>(.*?)</title>", elements)
    assert title is not None and "7f3c0000" in title[1]


@pytest.mark.slow
def test_a_script_that_is_not_the_pages_own_does_not_run(
    browser: str, documents: Any, tmp_path: Path
) -> None:
    page = report_page(
        documents.study(), [], made_at=documents.when, version="9.8.7", plotly_script=get_plotlyjs()
    )
    elements, console = shown(browser, page.replace("</main>", f"{UNPLEASANT}</main>"), tmp_path)
    assert "<title>taken" not in elements
    assert any("Content Security Policy" in line for line in console)
