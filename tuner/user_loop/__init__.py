"""Train a user's own function: the trial it is given, its cohort, its probe, and the check of any workload."""
