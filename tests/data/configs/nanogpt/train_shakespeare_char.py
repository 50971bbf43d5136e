# train a miniature character-level model
out_dir = "out-shakespeare-char"
eval_interval = 250

batch_size = 64
block_size = 256
n_layer = 6
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
grad_clip = 1.0  # clip gradients at this value, or disable if == 0.0
