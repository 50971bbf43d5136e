block_size = 256
n_layer = 6
max_iters = 20
grad_clip = 2 * 0.5
