"""Smooth, seamless noise in space, for backdrops and surfaces: value noise on a hashed lattice.

Scalar functions compiled by numba, to be called from other compiled loops; nothing is stored, so the same point and
seed give the same value in every process.
"""

from __future__ import annotations

import numpy as np

from sgsfa_synth.jit import njit


@njit
def lattice(i: int, j: int, k: int, seed: int) -> float:
    """Return the uniform value in [0, 1) of a lattice point (integer hash after Jenkins and Wang)."""
    h = np.uint32(i & 0xFFFFFFFF) * np.uint32(0x8DA6B343)
    h ^= np.uint32(j & 0xFFFFFFFF) * np.uint32(0xD8163841)
    h ^= np.uint32(k & 0xFFFFFFFF) * np.uint32(0xCB1AB31F)
    h ^= np.uint32(seed & 0xFFFFFFFF) * np.uint32(0x165667B1)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return np.float64(h & np.uint32(0xFFFFFF)) / 16777216.0


@njit
def cell_index(x: float) -> int:
    """Return the number of the unit cell that holds a coordinate."""
    return int(np.floor(x))


@njit
def noise2(x: float, y: float, seed: int) -> float:
    """Return value noise in the plane, in [0, 1), features about one unit wide."""
    i = cell_index(x)
    j = cell_index(y)
    u = x - i
    v = y - j
    u = u * u * (3.0 - 2.0 * u)
    v = v * v * (3.0 - 2.0 * v)
    low = lattice(i, j, 0, seed) * (1.0 - u) + lattice(i + 1, j, 0, seed) * u
    high = lattice(i, j + 1, 0, seed) * (1.0 - u) + lattice(i + 1, j + 1, 0, seed) * u
    return float(low * (1.0 - v) + high * v)


@njit
def noise3(x: float, y: float, z: float, seed: int) -> float:
    """Return value noise in space, in [0, 1), features about one unit wide."""
    i = cell_index(x)
    j = cell_index(y)
    k = cell_index(z)
    u = x - i
    v = y - j
    w = z - k
    u = u * u * (3.0 - 2.0 * u)
    v = v * v * (3.0 - 2.0 * v)
    w = w * w * (3.0 - 2.0 * w)
    a = lattice(i, j, k, seed) * (1.0 - u) + lattice(i + 1, j, k, seed) * u
    b = lattice(i, j + 1, k, seed) * (1.0 - u) + lattice(i + 1, j + 1, k, seed) * u
    c = lattice(i, j, k + 1, seed) * (1.0 - u) + lattice(i + 1, j, k + 1, seed) * u
    d = lattice(i, j + 1, k + 1, seed) * (1.0 - u) + lattice(i + 1, j + 1, k + 1, seed) * u
    return float((a * (1.0 - v) + b * v) * (1.0 - w) + (c * (1.0 - v) + d * v) * w)


@njit
def cloud2(x: float, y: float, octaves: int, seed: int) -> float:
    """Return the sum of octaves of `noise2`, each twice as fine and half as strong, scaled to [0, 1)."""
    total = 0.0
    weight = 1.0
    norm = 0.0
    for octave in range(octaves):
        total += weight * noise2(x, y, seed + 31 * octave)
        norm += weight
        weight *= 0.5
        x *= 2.03
        y *= 2.03
    return total / norm
