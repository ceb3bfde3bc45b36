"""Random numbers addressed by sample, the root of genworker's determinism.

In: a seed, a stream and a range of sample indices. Out: numbers that depend on nothing else: not on batch, shard, worker,
attempt, or processor. The integers come from Philox, a counter-based generator (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011). The step to normal variates uses only +, -, *, / and sqrt, which IEEE 754 rounds the same way
everywhere; `log` and `cos` of numpy and torch differ in the last bit between processors.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from genworker.schema import Int64Array

_WORDS_PER_BLOCK = 4  # one Philox4x64 counter value gives four 64-bit words


class Stream(IntEnum):
    """Independent streams of one seed. The numbers are part of every dataset's identity: never reuse or renumber one."""

    LATENTS = 0
    LABELS = 1
    ORDER = 2  # of training images, or of the blocks that hold them
    ORDER_IN_BLOCKS = 3  # of training images, within a few blocks
    HOLDOUT = 4  # which images are never trained on
    TRAINING = 16  # training phases count upwards from here


def raw_words(seed: int, stream: int, first: int, count: int, num_words: int) -> npt.NDArray[np.uint64]:
    """Return uniform 64-bit words, uint64 [count, num_words]; row k belongs to index first + k."""
    blocks = -(-num_words // _WORDS_PER_BLOCK)
    start = first * blocks
    # numpy counts up before it draws, so counter c yields block c + 1; only consistency matters here.
    counter = np.array([start & 0xFFFFFFFFFFFFFFFF, start >> 64, 0, 0], dtype=np.uint64)
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(count * blocks * _WORDS_PER_BLOCK)
    return words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :num_words]


def normals(seed: int, stream: int, first: int, count: int, dim: int) -> npt.NDArray[np.float32]:
    """Return standard normal variates, float32 [count, dim]; row k belongs to index first + k."""
    words = raw_words(seed, stream, first, count, dim)
    flat = np.ascontiguousarray(words).reshape(-1)
    out = np.empty(flat.size, dtype=np.float32)
    # Blocks that stay in the processor's cache: the formula makes some thirty passes over its operands.
    for start in range(0, flat.size, 8192):
        block = flat[start : start + 8192]
        uniform = ((block >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # exact, in (0, 1)
        out[start : start + 8192] = _normal_quantile(uniform)
    return out.reshape(count, dim)


def uniforms(seed: int, stream: int, first: int, count: int, dim: int) -> npt.NDArray[np.float32]:
    """Return uniform variates in [0, 1), float32 [count, dim]; row k belongs to index first + k."""
    words = raw_words(seed, stream, first, count, dim)
    return ((words >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)  # 24 bits: exact, and below 1


def latents(seed: int, first: int, count: int, latent_dim: int) -> npt.NDArray[np.float32]:
    """Return the latents of samples [first, first + count), float32 [count, latent_dim]."""
    return normals(seed, Stream.LATENTS, first, count, latent_dim)


def labels(seed: int, first: int, count: int, num_classes: int, rule: str) -> Int64Array:
    """Return the labels of samples [first, first + count), int64 [count] in [0, num_classes).

    Args:
        seed: of the plan.
        first: index of the first sample.
        count: number of samples.
        num_classes: at least 1.
        rule: ``balanced`` (every run of num_classes samples holds each class once, in a random order), ``uniform``
            (independent draws), or a class number.
    """
    if rule == "balanced":
        first_block, last_block = first // num_classes, (first + count - 1) // num_classes
        words = raw_words(seed, Stream.LABELS, first_block, last_block - first_block + 1, num_classes)
        order = np.argsort(words, axis=1, kind="stable").astype(np.int64).reshape(-1)
        return order[first - first_block * num_classes :][:count]
    if rule == "uniform":
        words = raw_words(seed, Stream.LABELS, first, count, 1)[:, 0]
        # The high 32 bits scaled to [0, num_classes): biased by less than num_classes / 2**32.
        return (((words >> np.uint64(32)) * np.uint64(num_classes)) >> np.uint64(32)).astype(np.int64)
    return np.full(count, int(rule), dtype=np.int64)


def _horner(x: npt.NDArray[np.float64], coefficients: tuple[float, ...]) -> npt.NDArray[np.float64]:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result


def _log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of x in (0, 1), by its series in (m - 1) / (m + 1); relative error below 1e-13."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * 0.6931471805599453 + 2.0 * s * _horner(s * s, tuple(1.0 / (2 * k + 1) for k in range(10)))


def _normal_quantile(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inverse of the normal distribution function: Wichura, algorithm AS 241 (PPND16), Applied Statistics 37 (1988)."""
    q = p - 0.5
    r = 0.180625 - q * q
    value = q * _horner(r, _A) / _horner(r, _B)
    tail = np.flatnonzero(np.abs(q) > 0.425)
    if tail.size:
        q_tail = q[tail]
        r = np.sqrt(-_log(np.minimum(p[tail], 1.0 - p[tail])))
        near = r - 1.6
        magnitude = _horner(near, _C) / _horner(near, _D)
        if (far := r > 5.0).any():  # beyond 6.7 standard deviations
            beyond = r[far] - 5.0
            magnitude[far] = _horner(beyond, _E) / _horner(beyond, _F)
        value[tail] = np.copysign(magnitude, q_tail)
    return value


# fmt: off
_A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
      4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)
_B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
      2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)
_C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)
_D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)
_E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)
_F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)
# fmt: on
