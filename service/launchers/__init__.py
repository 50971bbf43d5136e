"""Where trainings run: a launcher starts a training process and streams what it tells."""
