"""Training configs."""

from torchtitan.config import TrainingConfig

training = TrainingConfig(steps=1000, max_norm=1.0)
