# ruff: noqa: C408
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.0001),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
train_cfg = dict(max_iters=368750)
