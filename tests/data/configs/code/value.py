"""Loop."""

from torch.nn.utils import clip_grad_value_


def step(model, optimizer):
    clip_grad_value_(model.parameters(), clip_value=0.5)
    optimizer.step()
