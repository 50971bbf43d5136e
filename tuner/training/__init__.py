"""Training a cohort: the loop, the engine that advances lanes, and the events they tell."""
