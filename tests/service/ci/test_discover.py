"""A sweep of a repository yields the files that may hold a clip value, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.ci.config import open_config
from service.ci.discover import MAX_SWEPT_BYTES, find_configs
from service.ci.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def swept(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_configs(root)]


def test_files_that_name_a_key_are_found_in_order(tmp_path: Path) -> None:
    for name, text in {
        "b/train.yaml": "max_grad_norm: 1.0",
        "a.yaml": "trainer: {gradient_clip_val: 1}",
        "c/d/run.sh": "run --clip-grad 1.0",
        "ds.json": '{"gradient_clipping": 1}',
        "t.toml": "[training]\nmax_norm = 1.0",
        "notes.md": "max_grad_norm",
        "other.yaml": "learning_rate: 1",
        "config/train_small.py": "batch_size = 8\ngrad_clip = 1.0\n",
        "config/mask.py": "optim_wrapper = dict(\n    clip_grad=dict(max_norm=1))\n",
        # Code is looked at when it is named: a library of losses is full of such calls.
        "loop.py": "def step():\n    clip_grad_norm_(parameters, 1.0)\n    grad_clip = 1.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert swept(tmp_path) == [
        "a.yaml",
        "ds.json",
        "t.toml",
        "b/train.yaml",
        "c/d/run.sh",
        "config/mask.py",
        "config/train_small.py",
    ]


@pytest.mark.parametrize("folder", [".git", ".venv", "node_modules", "wandb/run-1", "lib/site-packages/x"])
def test_other_peoples_files_are_passed_over(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "train.yaml").write_text("max_grad_norm: 1.0")
    assert swept(tmp_path) == []


def test_data_links_and_unreadable_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b'{"max_grad_norm": 1}' + b" " * MAX_SWEPT_BYTES)
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.yaml").write_text("max_grad_norm: 1")
    (tmp_path / "loop").symlink_to(tmp_path / "inner")
    assert swept(tmp_path) == ["inner/a.yaml"]


def test_every_value_of_the_corpus_is_found_by_a_sweep(tmp_path: Path) -> None:
    """Whatever can be opened without being told how, and says its key, is found."""
    shutil.copytree(CONFIGS, tmp_path / "repository")
    root = tmp_path / "repository"
    found = set(swept(root))
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix == ".py" or path.parent == root:
            continue
        try:
            located = open_config(path).located
        except ConfigError:
            continue
        assert located.is_implicit or path.relative_to(root).as_posix() in found
