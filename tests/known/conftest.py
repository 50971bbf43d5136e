"""What all known-answer tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def single_thread() -> None:
    """Models this small lose by sharing their work between threads."""
    torch.set_num_threads(1)
