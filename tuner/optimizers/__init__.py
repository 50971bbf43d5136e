"""Optimizer settings, one file per family; describing one does not load torch, stepping with it does."""

from tuner.optimizers.adagrad import Adagrad as Adagrad
from tuner.optimizers.adagrad import adagrad as adagrad
from tuner.optimizers.adam import Adam as Adam
from tuner.optimizers.adam import adam as adam
from tuner.optimizers.adam import adamw as adamw
from tuner.optimizers.base import CustomOptimizer as CustomOptimizer
from tuner.optimizers.base import OptimizerSetting as OptimizerSetting
from tuner.optimizers.base import OptimizerState as OptimizerState
from tuner.optimizers.muon import Muon as Muon
from tuner.optimizers.muon import muon as muon
from tuner.optimizers.rmsprop import RmsProp as RmsProp
from tuner.optimizers.rmsprop import rmsprop as rmsprop
from tuner.optimizers.schedules import Schedule as Schedule
from tuner.optimizers.schedules import constant as constant
from tuner.optimizers.schedules import cosine as cosine
from tuner.optimizers.schedules import step_decay as step_decay
from tuner.optimizers.schedules import warmup as warmup
from tuner.optimizers.sgd import Sgd as Sgd
from tuner.optimizers.sgd import sgd as sgd
from tuner.optimizers.shampoo import Shampoo as Shampoo
from tuner.optimizers.shampoo import shampoo as shampoo
