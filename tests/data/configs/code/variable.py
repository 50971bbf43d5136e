"""Loop."""

import torch


def step(model, arguments):
    torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
