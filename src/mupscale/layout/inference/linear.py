"""Linear equations with few unknowns that matter."""

from __future__ import annotations

import numpy as np


def sparsest(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A least squares solution with few entries: of least ∑|x|^½, by reweighting.

    >>> sparsest(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.array([2.0, 2.0])).round(6)
    array([0., 2., 0.])
    """
    weights = 1 - 1e-2 * np.arange(matrix.shape[1]) / matrix.shape[1]  # of two that do the same, the first
    solution = np.zeros(matrix.shape[1])
    for _ in range(40):
        solution = weights * np.linalg.lstsq(matrix * weights, right, rcond=1e-10)[0]
        weights = (np.abs(solution) + 1e-9) ** 0.75
    matters = np.abs(solution) > 1e-3
    exact = np.zeros_like(solution)
    exact[matters] = np.linalg.lstsq(matrix[:, matters], right, rcond=1e-10)[0]
    return exact
