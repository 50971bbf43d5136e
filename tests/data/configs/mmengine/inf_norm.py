optim_wrapper = {"type": "OptimWrapper", "clip_grad": {"max_norm": 35, "norm_type": float("inf")}}
