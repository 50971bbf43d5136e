"""Loop."""


def step(fabric, model, optimizer):
    fabric.clip_gradients(model, optimizer, max_norm=0.25)
    optimizer.step()
