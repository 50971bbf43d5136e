"""Clipping methods of one lane as the papers write them: slow, in double precision, without torch or `tuner`.

A gradient is a list of NumPy arrays, one per parameter tensor. Each class has ``step(grads, weights, loss)``, which
returns the clipped arrays, or None for a step to skip. Written from the formulas in clipping-methods, section 2.
"""

from __future__ import annotations

import math
import statistics

import numpy as np


def norm_of(arrays):
    return math.sqrt(sum(float(np.sum(np.square(each))) for each in arrays))


def times(arrays, factor):
    return [factor * each for each in arrays]


class GlobalNorm:
    def __init__(self, max_norm):
        self.max_norm = max_norm

    def step(self, grads, weights, loss):
        return times(grads, min(1.0, self.max_norm / (norm_of(grads) + 1e-6)))


class GlobalNormInf(GlobalNorm):
    def step(self, grads, weights, loss):
        largest = max(float(np.max(np.abs(each))) for each in grads)
        return times(grads, min(1.0, self.max_norm / (largest + 1e-6)))


class Value:
    def __init__(self, clip_value):
        self.clip_value = clip_value

    def step(self, grads, weights, loss):
        return [np.clip(each, -self.clip_value, self.clip_value) for each in grads]


class PerTensorNorm:
    def __init__(self, max_norm):
        self.max_norm = max_norm

    def step(self, grads, weights, loss):
        limit = self.max_norm / math.sqrt(len(grads))
        return [each * min(1.0, limit / (norm_of([each]) + 1e-6)) for each in grads]


class Agc:
    def __init__(self, ratio, eps=1e-3):
        self.ratio, self.eps = ratio, eps

    def step(self, grads, weights, loss):
        return [self._tensor(grad, weight) for grad, weight in zip(grads, weights, strict=True)]

    def _tensor(self, grad, weight):
        if grad.ndim <= 1:
            return self._unit(grad, weight)
        return np.stack([self._unit(grad[row], weight[row]) for row in range(len(grad))])

    def _unit(self, grad, weight):
        limit = self.ratio * max(norm_of([weight]), self.eps)
        norm = norm_of([grad])
        return grad * limit / max(norm, 1e-6) if norm > limit else grad


class AutoClip:
    def __init__(self, percentile, window=None):
        self.percentile, self.window, self.history = percentile, window, []

    def step(self, grads, weights, loss):
        norm = norm_of(grads)
        self.history.append(norm)
        kept = self.history if self.window is None else self.history[-self.window :]
        return times(grads, min(1.0, float(np.percentile(kept, self.percentile)) / (norm + 1e-6)))


class ZClip:
    def __init__(self, z_threshold, alpha=0.97, warmup=25, factor=1.0, c_max=1.0):
        self.z_threshold, self.alpha, self.warmup, self.factor, self.c_max = (
            z_threshold,
            alpha,
            warmup,
            factor,
            c_max,
        )
        self.buffer, self.mean, self.variance = [], None, None

    def step(self, grads, weights, loss):
        norm = norm_of(grads)
        limit, counted = self.c_max, norm
        if len(self.buffer) < self.warmup:
            self.buffer.append(norm)
            if len(self.buffer) == self.warmup:
                self.mean, self.variance = statistics.fmean(self.buffer), statistics.pvariance(self.buffer)
        else:
            sigma = math.sqrt(self.variance)
            z = (norm - self.mean) / (sigma + 1e-6)
            if z > self.z_threshold:
                counted = self.factor * (self.mean + self.z_threshold * sigma * self.z_threshold / z)
                limit = min(counted, self.c_max)
            self.mean = self.alpha * self.mean + (1 - self.alpha) * counted
            self.variance = self.alpha * self.variance + (1 - self.alpha) * (counted - self.mean) ** 2
        return times(grads, min(1.0, limit / (norm + 1e-6)))


class AdaGC:
    def __init__(self, lambda_rel, lambda_abs=1.0, beta=0.98, warmup=100):
        self.lambda_rel, self.lambda_abs, self.beta, self.warmup = lambda_rel, lambda_abs, beta, warmup
        self.time, self.gamma = 0, None

    def step(self, grads, weights, loss):
        self.time += 1
        norms = [norm_of([each]) for each in grads]
        if self.time < self.warmup:
            common = min(1.0, self.lambda_abs / norm_of(grads))
            factors = [common] * len(grads)
            limited = [common * each for each in norms]
            earlier = limited if self.gamma is None else self.gamma
            self.gamma = [min(old, new) for old, new in zip(earlier, limited, strict=True)]
        else:
            factors = [
                min(1.0, self.lambda_rel * gamma / norm)
                for gamma, norm in zip(self.gamma, norms, strict=True)
            ]
            self.gamma = [
                self.beta * gamma + (1 - self.beta) * factor * norm
                for gamma, factor, norm in zip(self.gamma, factors, norms, strict=True)
            ]
        return [factor * each for factor, each in zip(factors, grads, strict=True)]


class NormGrowth:
    def __init__(self, ratio):
        self.ratio, self.previous = ratio, None

    def step(self, grads, weights, loss):
        norm = norm_of(grads)
        divisor = 1.0
        if self.previous is not None:
            divisor = max(norm / (self.previous + 1e-8), self.ratio) / self.ratio
        self.previous = norm / divisor
        return [each / divisor for each in grads]


class Quantile:
    def __init__(self, share, eta=0.2, start=0.1):
        self.share, self.eta, self.limit, self.highest = share, eta, start, 10 * start

    def step(self, grads, weights, loss):
        padded = norm_of(grads) + 1e-6
        limit, is_unclipped = self.limit, padded <= self.limit
        self.limit = min(limit * math.exp(-self.eta * (is_unclipped - self.share)), self.highest)
        return times(grads, min(1.0, limit / padded))


class SkipStep:
    def __init__(self, num_sigmas, window=128):
        self.num_sigmas, self.window, self.losses, self.norms = num_sigmas, window, [], []

    def step(self, grads, weights, loss):
        norm = norm_of(grads)
        is_outlier = self._is_outlier(loss, self.losses) or self._is_outlier(norm, self.norms)
        self.losses.append(loss)
        self.norms.append(norm)
        return None if is_outlier else grads

    def _is_outlier(self, value, history):
        past = history[-self.window :]
        if len(past) + 1 < self.window // 2:
            return False
        return value > statistics.fmean(past) + self.num_sigmas * statistics.stdev(past)


class Nothing:
    def __init__(self, threshold):
        pass

    def step(self, grads, weights, loss):
        return grads


#: By the name of the method in `tuner.methods.METHODS`.
REFERENCES = {
    "none": Nothing,
    "global_norm": GlobalNorm,
    "global_norm_inf": GlobalNormInf,
    "value": Value,
    "per_tensor_norm": PerTensorNorm,
    "agc": Agc,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "adagc": AdaGC,
    "norm_growth": NormGrowth,
    "quantile": Quantile,
    "skip_step": SkipStep,
}
