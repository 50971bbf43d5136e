"""Model."""

import keras

optimizer = keras.optimizers.Adam(1e-3, global_clipnorm=1.0)
