out_dir = "out"
block_size = 256
n_layer = 6
max_iters = 20
