"""The clipper asks a real service: its key, its versions of an answer, its absence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from acceptance.deployment import Deployment, wait_for
from torch import nn

from service import recommendations
from service.db.clock import database_now
from service.db.models import StudyRow
from service.workloads import publish_workloads
from tuner import Clipper
from tuner.evidence import Estimate, NormSketch, Recommendation, Reference, Verdict
from tuner.inline import CliptuneWarning
from tuner.parameters import WorkloadDescription
from tuner.spec import ClipSetting, study_spec

WORKLOAD = "my model/2"
ESTIMATE = Estimate(mean=1.8, standard_error=0.01, num_seeds=2, num_diverged=0)
RECOMMENDATION = Recommendation(
    objective="val_loss", verdict=Verdict.CLIP, setting=ClipSetting(method="global_norm", threshold=0.42),
    interval=(0.25, 0.71), reason="it helps", best=None, value=ESTIMATE, off=ESTIMATE, difference=None,
    against_current=None, clip_fraction=0.06, mean_scale=0.97, norms=None, kappa=1.75, num_trials=4,
    num_diverged_trials=0, lane_steps=72, full_runs=8.0, train_seconds=4.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("service")
    with Deployment(home, f"sqlite:///{home / 'cliptune.db'}") as running:
        running.start_api()
        description = WorkloadDescription(name=WORKLOAD, description="", objective="val_loss", parameters=())
        database = running.database()
        with database.write() as session:
            publish_workloads(session, [description], database_now(session))
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployment: Deployment) -> None:
    for name in ("CLIPTUNE_URL", "CLIPTUNE_API_KEY", "CLIPTUNE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPTUNE_HOME", str(deployment.home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def recommend(deployment: Deployment, reference: Reference | None = None, **changes: Any) -> None:
    """Store the answer of a study, as a worker would."""
    study = deployment.client().create_study({"workload": WORKLOAD, "num_trials": 4})
    with deployment.database().write() as session:
        row = session.get_one(StudyRow, study.id)
        recommendations.store(
            session,
            study_id=study.id,
            tenant_id=row.tenant_id,
            spec=study_spec(row.spec),
            reference=reference,
            recommendation=dataclasses.replace(RECOMMENDATION, **changes),
            snippets={},
            provenance={},
        )


def asked(**options: Any) -> str:
    clipper = Clipper.recommended(workload=WORKLOAD, fallback="global_norm:1.0", timeout=30, **options)
    return str(clipper.setting)


def test_what_a_service_says_is_followed_from_study_to_study(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.warns(
        CliptuneWarning, match=r"there is no recommendation for it \(no study of workload 'my model"
    ):
        assert asked() == "global_norm:1"
    recommend(deployment)
    assert asked() == "global_norm:0.42"
    (file,) = (tmp_path / "cliptune").iterdir()
    kept = file.read_bytes()
    # The service has compared versions and answered 304: the file is still the first one.
    assert asked() == "global_norm:0.42"
    assert file.read_bytes() == kept
    off = ClipSetting(method="none")
    recommend(deployment, verdict=Verdict.NO_DIFFERENCE, setting=off, interval=None, kappa=None)
    assert asked() == "none"
    recommend(deployment, verdict=Verdict.INCONCLUSIVE, setting=off, interval=None, kappa=None)
    with pytest.warns(
        CliptuneWarning, match=r"is inconclusive \(it helps\); training with none, the answer kept at"
    ):
        assert asked() == "none"
    with pytest.warns(CliptuneWarning, match="answered 401: "):
        assert asked(api_key="wrong") == "none"


def test_norm_that_the_study_measured_comes_along(deployment: Deployment) -> None:
    """A method with constants of that scale then trains as it did in the study."""
    norms = NormSketch(median=3.0, q90=4.0, q99=5.0, max=6.0)
    recommend(
        deployment,
        Reference(l2_norm=norms, max_abs=norms, num_batches=64),
        setting=ClipSetting(method="quantile", threshold=0.5),
    )
    clipper = Clipper.recommended(workload=WORKLOAD, fallback="none", timeout=30)
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([100.0])
    clipper(weight)
    assert clipper.last.clipped_norm == pytest.approx(3.0), (
        "the method's first threshold is the reference norm"
    )


def test_service_that_has_stopped_is_done_without(deployment: Deployment, tmp_path: Path) -> None:
    recommend(deployment, setting=ClipSetting(method="global_norm", threshold=0.7))
    assert asked() == "global_norm:0.7"
    url = json.loads((deployment.home / "service.json").read_text())["url"]
    key = (deployment.home / "key").read_text().strip()
    api = deployment.processes[0]
    api.terminate()
    wait_for(lambda: api.poll() is not None, "the API's end")
    with pytest.warns(
        CliptuneWarning, match=r"could not be asked .*; training with global_norm:0\.7, the answer kept"
    ):
        assert asked(url=url, api_key=key) == "global_norm:0.7"
    (file,) = (tmp_path / "cliptune").iterdir()
    file.unlink()
    with pytest.warns(CliptuneWarning, match="training with the fallback global_norm:1"):
        assert asked(url=url, api_key=key) == "global_norm:1"
