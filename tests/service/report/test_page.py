"""The page: whole for every kind of study, true to its documents, and safe whatever they say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects
import pytest

from service.report.page import report_page
from service.schemas import StudyOut, TrialOut
from service.states import JobState
from tuner.evidence import Estimate, Stage, TrialState, Verdict
from tuner.spec import OFF_SETTING, ClipSetting

Study = tuple[StudyOut, list[TrialOut]]
#: Elements that have no end tag.
VOID = {"meta", "br"}
UNPLEASANT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">%{x}'&amp;"


class Reader(HTMLParser):
    """Checks that every tag is closed, and collects what is seen, tags, and the charts' data."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            if self.tags[-1][1].get("type") == "application/json":
                self.figures.append(json.loads(data))
            else:
                self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def seen(self) -> str:
        return " ".join(" ".join(self.text).split())

    def chart(self, start: str) -> dict[str, Any]:
        names = [tag[1]["data-figure"] for tag in self.tags if "data-figure" in tag[1]]
        (index,) = [index for index, name in enumerate(names) if name and name.startswith(start)]
        return self.figures[index]


def page_of(study: StudyOut, trials: list[TrialOut], when: Any) -> str:
    return report_page(study, trials, made_at=when, version="9.8.7", plotly_script="/* charts */ 1 < 2;")


@pytest.fixture
def read(documents: Any) -> Callable[..., Reader]:
    def reader(study: StudyOut, trials: list[TrialOut]) -> Reader:
        found = Reader()
        found.feed(page_of(study, trials, documents.when))
        found.close()
        assert found.open == []
        return found

    return reader


def clip(documents: Any) -> Study:
    return documents.study(documents.answer()), documents.trials()


def no_difference(documents: Any) -> Study:
    answer = documents.answer(Verdict.NO_DIFFERENCE, setting=OFF_SETTING, interval=None, threshold_name=None)
    return documents.study(answer), documents.trials()


def do_not_clip(documents: Any) -> Study:
    answer = documents.answer(Verdict.DO_NOT_CLIP, setting=OFF_SETTING, interval=None, threshold_name=None)
    return documents.study(answer), documents.trials()


def inconclusive(documents: Any) -> Study:
    return documents.study(documents.answer(Verdict.INCONCLUSIVE, more_seeds=7)), documents.trials()


def off_diverged_everywhere(documents: Any) -> Study:
    off = Estimate(mean=None, standard_error=None, num_seeds=0, num_diverged=3)
    trials = [documents.trial(0, OFF_SETTING, [None] * 3), *documents.trials()[1:6]]
    return documents.study(documents.answer(off=off, difference=None)), trials


def everything_diverged(documents: Any) -> Study:
    off = Estimate(mean=None, standard_error=None, num_seeds=0, num_diverged=3)
    answer = documents.answer(
        Verdict.INCONCLUSIVE,
        setting=OFF_SETTING,
        best=None,
        value=None,
        off=off,
        difference=None,
        interval=None,
        clip_fraction=None,
        mean_scale=None,
        norms=None,
        kappa=None,
        failures=None,
    )
    settings = (OFF_SETTING, "global_norm:1", "global_norm:2")
    return documents.study(answer), [documents.trial(i, each, [None] * 3) for i, each in enumerate(settings)]


def running(documents: Any) -> Study:
    trials = [*documents.trials()[:2], documents.trial(2, "global_norm:0.5", [])]
    return documents.study(), trials


def queued(documents: Any) -> Study:
    return documents.study(state=JobState.QUEUED, reference=None, started_at=None, num_trials_ended=0), []


def failed(documents: Any) -> Study:
    study = documents.study(state=JobState.FAILED, done=True, error=documents.error())
    broken = documents.trial(1, "global_norm:1", [], state=TrialState.FAIL, error="ValueError: no")
    return study, [documents.trials()[0], broken]


def extended(documents: Any) -> Study:
    """An answer is there while more seeds are trained."""
    study = documents.study(documents.answer(), state=JobState.RUNNING, done=False)
    return study, [*documents.trials(), documents.trial(8, documents.best, [], stage=Stage.CONFIRM)]


def several_methods(documents: Any) -> Study:
    trials = [
        *documents.trials(),
        documents.trial(8, "value:0.5", [1.8, 1.9]),
        documents.trial(9, "autoclip:80", [1.8, 1.9]),
    ]
    return documents.study(documents.answer(), spec={"methods": ("global_norm", "value", "autoclip")}), trials


def tuned_learning_rate(documents: Any) -> Study:
    best = ClipSetting(method="global_norm", threshold=0.25, learning_rate_scale=2.0)
    trials = [
        documents.trial(0, OFF_SETTING, [2.4, 2.6]),
        documents.trial(1, "none@0.5", [2.0, 2.2]),
        documents.trial(2, best, [1.4, 1.6]),
    ]
    spec = {"learning_rate_low": 0.1, "learning_rate_high": 10.0}
    return documents.study(documents.answer(setting=best, best=best), spec=spec), trials


def recorded_by_an_earlier_version(documents: Any) -> Study:
    def aged(trial: TrialOut) -> TrialOut:
        old = {"curve": None, "histogram": None, "phases": (), "initial": None, "loss": None}
        return trial.model_copy(update={"lanes": tuple(replace(lane, **old) for lane in trial.lanes)})

    return documents.study(documents.answer()), [aged(trial) for trial in documents.trials()]


CASES = {
    each.__name__: each
    for each in (
        clip,
        no_difference,
        do_not_clip,
        inconclusive,
        off_diverged_everywhere,
        everything_diverged,
        running,
        queued,
        failed,
        extended,
        several_methods,
        tuned_learning_rate,
        recorded_by_an_earlier_version,
    )
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kind_of_study_has_a_whole_page(case: Any, documents: Any, read: Any) -> None:
    study, trials = case(documents)
    found = read(study, trials)
    places = [tag[1] for tag in found.tags if "data-figure" in tag[1]]
    assert len(places) == len(found.figures)
    for figure in found.figures:
        assert figure["data"]
        # Raises on an attribute that plotly does not have.
        plotly.graph_objects.Figure(figure)
    assert not re.search(r"\b(nan|inf|None|TrialState|Verdict)\b", found.seen)
    rows = [tag for tag, _ in found.tags].count("tr")
    assert rows > len(trials)
    assert "Made 2026-01-02 03:04:05 UTC by cliptune 9.8.7." in found.seen


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (clip, "Clipping helps here: train with global_norm, max_norm = 0.25."),
        (no_difference, "Clipping makes no difference that matters here: train with off (no clipping)."),
        (do_not_clip, "Clipping does not help here: train with off (no clipping)."),
        (inconclusive, "Not settled yet; the best seen is global_norm, max_norm = 0.25."),
        (inconclusive, "About 7 more fresh seeds would settle it."),
        (inconclusive, "To paste, if it can't wait"),
        (off_diverged_everywhere, "diverged in all 3 seeds"),
        (everything_diverged, "none: every one diverged"),
        (running, "1 of 6 settings have a result; this page shows what is known so far."),
        (running, "Without a result yet: 1 of 2 trials of global_norm."),
        (queued, "No setting has a result yet."),
        (failed, "the device ran out of memory [oom]"),
        (failed, "Trial 1 (global_norm:1) failed: ValueError: no"),
        (extended, "More is being trained"),
        (several_methods, "val_loss by threshold, autoclip"),
        (tuned_learning_rate, "train with global_norm, max_norm = 0.25, learning rate \u00d7 2."),
        (tuned_learning_rate, "off (no clipping), learning rate \u00d7 0.5"),
        (tuned_learning_rate, "val_loss by learning rate"),
    ],
)
def test_page_says_what_is_known(case: Any, words: str, documents: Any, read: Any) -> None:
    assert words in read(*case(documents)).seen


def test_figures_stand_with_their_uncertainty_and_comparison(documents: Any, read: Any) -> None:
    seen = read(*clip(documents)).seen
    # Two seeds: 1.5 +- 12.706 * 0.1.
    assert "val_loss, best 1.500 \u00b1 0.10 [0.2294, 2.771], 2 seeds off: 2.100 \u00b1 0.10" in seen
    assert "val_loss, best minus off \u22120.600 [\u22120.900, \u22120.300], 2 paired seeds, paired t" in seen
    assert "failed runs, best 0 of 5 runs 0 % \u2013 43 % off: 1 of 5 runs (4 % \u2013 62 %)" in seen
    assert "0.500 \u00d7 the median norm of the probe" in seen
    assert "1,000 steps shared with off count once" in seen
    assert "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)" in seen


def test_all_trials_are_listed_best_first(documents: Any) -> None:
    study, trials = clip(documents)
    page = page_of(study, trials, documents.when)
    table = page[page.index("All trials") :]
    numbers = re.findall(r'<tr><th scope="row" class="number">(\d+)</th><td class="">(\w+)', table)
    assert [(int(number), stage) for number, stage in numbers] == [
        (2, "search"),
        (7, "confirm"),
        (1, "search"),
        (0, "search"),
        (6, "confirm"),
        (4, "search"),
        (3, "search"),
        (5, "search"),
    ]


def test_nothing_that_users_name_becomes_html(documents: Any, read: Any) -> None:
    answer = documents.answer(
        objective=UNPLEASANT,
        reason=UNPLEASANT,
        workload=UNPLEASANT,
        snippets={UNPLEASANT: UNPLEASANT},
        provenance={UNPLEASANT: {UNPLEASANT: [UNPLEASANT]}},
    )
    study = documents.study(answer, name=UNPLEASANT, workload=UNPLEASANT)
    study = study.model_copy(update={"spec": study.spec | {"parameters": {UNPLEASANT: UNPLEASANT}}})
    trials = [each.model_copy(update={"error": UNPLEASANT}) for each in documents.trials()]
    plain = read(*clip(documents))
    found = read(study, trials)
    kinds = {tag for tag, _ in found.tags}
    assert kinds == {tag for tag, _ in plain.tags} and "img" not in kinds
    assert len(found.scripts) == len(plain.scripts) == 2
    assert UNPLEASANT in "".join(found.text)
    texts = json.dumps(found.figures)
    assert "&lt;script&gt;" in texts and "<script" not in texts and "<img" not in texts
    assert "%{x}" not in texts


def test_page_asks_for_nothing_and_runs_only_its_own_scripts(documents: Any, read: Any) -> None:
    found = read(*clip(documents))
    for _, attributes in found.tags:
        assert not {"src", "href", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = [
        tag["content"] or "" for _, tag in found.tags if tag.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found.scripts]
    assert policy.startswith("default-src 'none'; ")
    scripts = " ".join(f"'sha256-{each}'" for each in hashes)
    assert f"script-src {scripts};" in policy


def test_same_documents_give_the_same_page(documents: Any) -> None:
    study, trials = clip(documents)
    assert page_of(study, trials, documents.when) == page_of(study, trials, documents.when)
