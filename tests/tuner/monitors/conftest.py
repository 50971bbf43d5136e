"""Makes `monitor_files`, which reads back what monitors wrote, importable."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode leaves sys.path alone.
sys.path.append(str(Path(__file__).parent))
