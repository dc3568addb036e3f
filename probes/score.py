"""Linear scores of rows, each by the probe of its part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .backend import Array, to_numpy
from .rows import Rows, runs, used_chunks


def score_rows(
    rows: Rows, parts: NDArray[Any], weights: Array, bias: Array, device: str | None = None
) -> NDArray[np.float64]:
    """Compute x w + b in one pass over the rows.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D], streamed.
    parts : int array of shape [N]
        Which probes score a row, in [0, P); -1 leaves it out.
    weights : array of shape [P, T, D], float
    bias : array of shape [P, T], float
    device : str, optional
        Torch device to compute on; left out, the chunks' own namespace and device.

    Returns
    -------
    float64 array of shape [N, T], numpy
        NaN where a row is left out.

    Raises
    ------
    InputError
        If a score is not finite.
    """
    weights, bias = to_numpy(weights), to_numpy(bias)
    scores = np.full((len(parts), weights.shape[1]), np.nan)
    columns: list[Array] = []
    for backend, positions, x in used_chunks(rows, parts, device):
        columns = columns or [backend.asarray(of_part.T, x.dtype) for of_part in weights]
        for part, here in runs(parts[positions]):
            with np.errstate(over="ignore", invalid="ignore"):  # told below, with the row
                linear = x[here, :] @ columns[part]
            scores[positions[here]] = to_numpy(linear).astype(np.float64) + bias[part]
    bad = np.flatnonzero((parts >= 0) & ~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise InputError(
            f"the activations of row {bad[0]} give no finite score: extract it again in a wider dtype, or leave it out"
        )
    return scores
