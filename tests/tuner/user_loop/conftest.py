"""What the tests of training functions share."""

from __future__ import annotations

import sys
from pathlib import Path

# Appended, as the folder of the tests is: `regression` is a module of these tests alone.
sys.path.append(str(Path(__file__).parent))
