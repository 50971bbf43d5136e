"""`cliptune report`: a real study as a file; errors before anything is lost."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import typer
from acceptance.deployment import Deployment, wait_for, wait_until_done

from service.cli.main import main
from service.cli.report import require_writable, write_whole
from service.states import JobState

STUDY = {"workload": "digits-mlp", "num_trials": 3, "num_seeds": 2, "num_steps": 20, "num_confirm_seeds": 0}


@pytest.mark.slow
def test_a_study_is_reported_while_it_waits_and_when_it_has_ended(tmp_path: Path, sqlite_url: str) -> None:
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        deployment.start_api()
        client = deployment.client()
        worker = deployment.start_worker()
        wait_for(lambda: client.list_workloads(), "the workloads")
        worker.terminate()
        worker.wait(timeout=30)
        study = client.create_study(STUDY, name="<i>digits</i>")
        file = tmp_path / "report.html"
        waiting = deployment.run("report", study.id[:8], "-o", str(file))
        assert waiting.returncode == 0, waiting.stderr
        assert "0 of 3 settings have a result" in file.read_text()
        deployment.start_worker()
        ended = wait_until_done(client, study)
        assert ended.state is JobState.SUCCEEDED and ended.result is not None
        done = deployment.run("report", study.id[:8], "-o", str(file))
        assert done.returncode == 0 and re.match(r"wrote .*report\.html \(\d+\.\d MB\)", done.stdout)
        page = file.read_text()
        assert "&lt;i&gt;digits&lt;/i&gt;" in page and "<i>digits" not in page
        assert all(f'data-figure="{name}"' in page for name in ("training-loss", "norm-histogram"))
        assert sorted(each.name for each in tmp_path.glob("*report*")) == ["report.html"]
        refused = deployment.run("report", "00000000", "-o", str(file))
        assert refused.returncode == 2 and "[study_not_found]" in refused.stderr
        assert file.read_text() == page


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"is a folder: name a file, for example .*report\.html"):
        require_writable(tmp_path)


def test_the_files_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"there is no folder .*missing; make it first"):
        require_writable(tmp_path / "missing" / "report.html")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    for text in ("first", "second \u00b1"):
        write_whole(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [file]


def test_what_can_not_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    # A folder in the way of the new file, whoever runs the test.
    (tmp_path / ".report.html.new").mkdir()
    with pytest.raises(typer.BadParameter, match=r"can't be written: .*; name another place"):
        write_whole(file, "new")
    assert file.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(typer.BadParameter, match="can't be written: Permission denied"):
        write_whole(tmp_path / "report.html", "new")


def test_without_plotly_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["cliptune", "report", "7f3c", "-o", str(tmp_path / "report.html")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "this command needs plotly: pip install 'cliptune[report]' [missing_extra]" in error
    assert list(tmp_path.iterdir()) == []
