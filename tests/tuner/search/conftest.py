"""Makes `simulated`, whole studies without training, importable for the tests of the search."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode leaves sys.path alone. Appended, so that no package is looked for here first.
sys.path.append(str(Path(__file__).parent))
