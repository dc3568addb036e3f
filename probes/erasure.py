r"""Erase what linear predictors could know of the targets, from sufficient statistics alone.

Of all affine maps r after which x and y have no covariance, the one of least :math:`\sum_i w_i \lVert r(x_i) - x_i
\rVert^2`, whatever inner product the norm is of, is

.. math:: r(x) = x - W^+ P W (x - \bar x)

with the whitening W of x and the orthogonal projection P onto the columns of :math:`W S_{xy}`: LEACE (Belrose et al.
2023, "LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819, theorem 4.2). Of erased rows, no linear
predictor of real y has a lower squared error than a constant, and none of a 0/1 column or of one-hot classes a lower
convex loss of any kind (ibid., section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import array_api_compat

from sonde.errors import InputError

from .backend import Array, Backend
from .eigenbasis import eigenbasis
from .moments import Moments
from .rows import Rows


@dataclass(frozen=True, slots=True)
class Eraser:
    r"""The affine map :math:`r(x) = x - U V^\top (x - \bar x)`, in raw units of x.

    Attributes
    ----------
    mean_x : float64 array of shape [D]
    left : float64 array of shape [D, K]
        U, a basis of the covariances of x with the targets, K of which are independent: what is taken away.
    right : float64 array of shape [D, K]
        V, with :math:`V^\top U = I`: how much of it.
    """

    mean_x: Array
    left: Array
    right: Array

    def apply(self, x: Array) -> Array:
        """Erase rows, which may be others than those of the moments.

        Parameters
        ----------
        x : array of shape [..., D], float64, float32, float16 or bfloat16, of any namespace and device

        Returns
        -------
        array of shape [..., D], float64 if `x` is, else float32, in the namespace and on the device of `x`

        Raises
        ------
        InputError
            If `x` has another number of columns, or another dtype.
        """
        hidden_size = int(self.mean_x.shape[0])
        if tuple(x.shape)[-1:] != (hidden_size,):
            raise InputError(
                f"activations of shape {tuple(x.shape)} do not fit an eraser of {hidden_size} columns: "
                "give those of the site and layer that it was made for"
            )
        backend = Backend.of(x)
        xp, narrow = backend.xp, backend.widen(x)
        wide = xp.astype(narrow, xp.float64)
        mean_x, left, right = (backend.asarray(a) for a in (self.mean_x, self.left, self.right))
        return xp.astype(wide - xp.matmul(xp.matmul(wide - mean_x, right), left.T), narrow.dtype)


class ErasedRows:
    """`Rows` from which an eraser has taken what it takes.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D].
    eraser : Eraser
        Of D columns.
    """

    def __init__(self, rows: Rows, eraser: Eraser) -> None:
        self._rows, self._eraser = rows, eraser

    @property
    def hidden_size(self) -> int:
        """Number of columns, D."""
        return self._rows.hidden_size

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        for span, chunk in self._rows:
            yield span, self._eraser.apply(chunk)


def leace(moments: Moments, *, tol: float | None = None) -> Eraser:
    r"""Return the least change of x after which it has no covariance with the targets.

    Columns are standardised first, which on the span of the rows, where alone the least change is determined, alters
    nothing. What is taken away are the covariances themselves: but for rounding of the moments they vanish, however
    badly x can be whitened.

    Parameters
    ----------
    moments : Moments
        Of the rows and targets, such as ``stats.total()`` or ``stats.without(fold)``. Targets may be 0/1, one-hot or
        real, and dependent.
    tol : float, optional
        What counts as rounding: singular values of the correlations between columns and targets of `tol` or less are
        left, and eigenvalues of the correlations of columns below `tol` times the greatest whiten as if they were
        that great. Left out, 8√D rounding errors of the moments' dtype.

    Returns
    -------
    Eraser
        In the namespace and on the device of the moments. Constant columns stay as they are.

    Raises
    ------
    InputError
        If `tol` is not positive.
    """
    xp = array_api_compat.array_namespace(moments.sxy)
    if tol is None:
        tol = 8 * float(xp.finfo(moments.dtype).eps) * moments.sxy.shape[0] ** 0.5
    if not tol > 0:
        raise InputError(f"tol {tol} is not positive: leave it out, or give a small number such as 1e-6")
    basis = eigenbasis(moments)
    spread = xp.sqrt(moments.weight * xp.where(moments.syy > 0, moments.syy, xp.ones_like(moments.syy)))
    directions, sizes, _ = xp.linalg.svd(moments.sxy / basis.scale[:, None] / spread, full_matrices=False)
    directions = directions[:, : int(xp.sum(xp.astype(sizes > tol, xp.int64)))]
    root = xp.sqrt(xp.maximum(basis.values, tol * xp.max(basis.values)))[:, None]
    # An orthonormal basis of the columns of WS_xy, in the eigenbasis.
    projection, _ = xp.linalg.qr(xp.matmul(basis.vectors.T, directions) / root)
    left = basis.scale[:, None] * xp.matmul(basis.vectors, root * projection)
    right = xp.matmul(basis.vectors, projection / root) / basis.scale[:, None]
    # Exactly, where rounding mixes null directions: a column that was constant may vary in other rows.
    varies = xp.astype(xp.linalg.diagonal(moments.sxx) > 0, xp.float64)[:, None]
    return Eraser(moments.mean_x, left * varies, right * varies)
