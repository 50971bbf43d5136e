"""A cohort travels as JSON and comes back equal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from tuner.training.cohort import Cohort


def test_cohort_survives_json(cohort: Callable[..., Cohort]) -> None:
    asked = cohort("none", "global_norm:0.5", history={4: (1.0, math.inf), 12: ()})
    text = json.dumps(asked.to_json(), allow_nan=False)
    assert Cohort.from_json(json.loads(text)) == asked
