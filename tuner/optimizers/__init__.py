"""Optimizer settings, one file per family; describing one does not load torch, building it does."""

from tuner.optimizers.adam import Adam as Adam
from tuner.optimizers.adam import adam as adam
from tuner.optimizers.adam import adamw as adamw
from tuner.optimizers.base import CustomOptimizer as CustomOptimizer
from tuner.optimizers.base import OptimizerSetting as OptimizerSetting
from tuner.optimizers.sgd import Sgd as Sgd
from tuner.optimizers.sgd import sgd as sgd
