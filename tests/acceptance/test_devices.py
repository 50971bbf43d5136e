"""One worker with three slots, one of which has no device: what people see, and that the answer is the library's."""

from __future__ import annotations

from pathlib import Path

import torch
from acceptance.deployment import STUDY, Deployment, wait_for

from tuner import tune

#: Fixed, because `auto` measures: one program per part, or per cohort in the library.
LANES = {"lanes": 64, "num_steps": 90}


def test_study_on_the_slots_that_work_finds_what_the_library_finds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cliptune.db"
    with Deployment(tmp_path / "home", url, devices="cpu,cpu,cuda:0") as deployment:
        deployment.start_api()
        deployment.start_worker()
        client = deployment.client()

        def slots() -> dict[str, str]:
            return {each.name: each.state for each in client.list_workers()[0].slots}

        # Nobody had to train there for it to be found out.
        wait_for(lambda: slots() == {"cpu:0": "free", "cpu:1": "free", "cuda:0": "aside"}, "the slots")
        study = client.create_study(STUDY | LANES)
        wait_for(lambda: list(slots().values()).count("busy") == 2, "both slots at work")
        shown = deployment.run("workers").stdout
        found = wait_for(lambda: (now := client.get_study(study.id)).done and now, "the study")
    assert "cuda:0   aside  PyTorch" in shown
    assert "finds no cuda device there, only cpu" in shown
    assert f"busy   study {study.id[:8]}" in shown
    assert found.result is not None
    assert found.device_seconds > 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = tune(**STUDY | LANES).to_json()
    finally:
        torch.set_num_threads(threads)
    told = found.result.model_dump(mode="json")
    for name in ("verdict", "setting", "interval", "difference", "divergence", "stage"):
        assert told.get(name) == expected.get(name), name
    assert told["setting"] == expected["setting"]
