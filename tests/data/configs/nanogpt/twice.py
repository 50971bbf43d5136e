block_size = 256
n_layer = 6
grad_clip = 1.0
grad_clip = 0.5
