"""What every probe of a layer needs and no label changes: computed once, and kept in the layer's store."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sonde.errors import StoreError
from sonde.store import Layer, Statistics

from .backend import Backend, to_numpy
from .eigenbasis import Basis, Eigenbasis
from .moments import FoldStatistics
from .tridiagonal import TridiagonalBasis

VERSION = 2
"""Of the numbers that are kept: to be raised with every change of how sums or bases are computed."""

_SMALL = 10**8
"""Bytes of a layer's statistics that are kept however small the layer itself is."""

_OF_STATISTICS = ("n", "weight", "shift_x", "sum_x")
_OF_BASES = ("scale", "live", "mean_x")
_OF_KIND: dict[type[Basis], tuple[str, ...]] = {Eigenbasis: ("values",), TridiagonalBasis: ("diagonal", "below")}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LabelFree:
    """The sums of a layer's folds without Gram matrices and targets, and the bases that stand for the matrices.

    Attributes
    ----------
    stats
        ``gram`` is None, and there are no targets.
    bases
        Of every training part: without fold 0, …, without fold F-1, and of all folds.
    """

    stats: FoldStatistics
    bases: tuple[Basis, ...]


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Where one layer's statistics are kept, and of what they are.

    Attributes
    ----------
    statistics
        The cache of the layer's store.
    about
        Layer and content, as JSON.
    most
        Bytes above which nothing is kept.
    """

    statistics: Statistics
    about: Mapping[str, Any]
    most: int

    @classmethod
    def of(cls, statistics: Statistics, layer: Layer) -> LayerCache:
        """The cache of a layer; what takes more room than the layer itself is kept only if it is small."""
        about = {"site": layer.spec.site, "tokens": layer.spec.tokens, "layer": layer.layer, "rows": layer.digest}
        return cls(statistics, about, max(_SMALL, int(np.prod(layer.shape)) * layer.dtype.itemsize))

    def get(
        self,
        what: str,
        folds: np.ndarray[Any, Any],
        n_folds: int,
        device: str | None,
        compute: Callable[[], LabelFree],
    ) -> LabelFree:
        """Read what is kept for these folds, or compute and keep it.

        Parameters
        ----------
        what
            Name of what `compute` computes.
        folds
            int ``[N]``, -1 for rows left out.
        n_folds
            F.
        device
            Where `compute` computes: a torch device, or None for numpy. Numbers of others differ in rounding.
        compute
            Called if nothing is kept.
        """
        digest = hashlib.blake2b(np.asarray(folds).astype("<i8").tobytes(), digest_size=16).hexdigest()
        about = dict(self.about) | {
            "what": what,
            "folds": digest,
            "n_folds": n_folds,
            "where": device or "numpy",
            "version": VERSION,
        }
        key = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
        kept = self.statistics.get(key)
        if kept is not None:
            return _from_arrays(kept, Backend.of(np.empty(0), device))
        found = compute()
        arrays = _to_arrays(found)
        if sum(x.nbytes for x in arrays.values()) <= self.most:
            try:
                self.statistics.put(key, arrays, about)
            except StoreError as error:
                tell_once(str(error))
        return found


def _to_arrays(found: LabelFree) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {name: to_numpy(getattr(found.stats, name)) for name in _OF_STATISTICS}
    for name in _OF_BASES + _OF_KIND[type(found.bases[0])]:
        arrays[name] = np.stack([to_numpy(getattr(basis, name)) for basis in found.bases])
    # Training parts may share the vectors of the whole.
    distinct = {id(basis.vectors): basis.vectors for basis in found.bases}
    arrays["vectors"] = np.stack([to_numpy(vectors) for vectors in distinct.values()])
    arrays["vectors_of"] = np.asarray([list(distinct).index(id(basis.vectors)) for basis in found.bases])
    # An empty array of the products' dtype would have no chunk.
    dtype = np.ones(1, dtype=str(found.stats.dtype).rpartition(".")[2])
    return arrays | {"part_weight": np.asarray([basis.weight for basis in found.bases]), "dtype": dtype}


def _from_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], backend: Backend) -> LabelFree:
    xp, n_folds, hidden = backend.xp, len(arrays["n"]), arrays["shift_x"].size
    stats = FoldStatistics(
        n=arrays["n"],
        weight=arrays["weight"],
        shift_x=backend.asarray(arrays["shift_x"]),
        sum_x=backend.asarray(arrays["sum_x"]),
        gram=None,
        shift_y=backend.zeros(0),
        sum_y=backend.zeros(n_folds, 0),
        cross=backend.zeros(n_folds, hidden, 0),
        square_y=backend.zeros(n_folds, 0),
        dtype=getattr(xp, arrays["dtype"].dtype.name),
    )
    make, of_kind = next((kind, names) for kind, names in _OF_KIND.items() if names[0] in arrays)
    moved = {name: backend.asarray(arrays[name]) for name in _OF_BASES + of_kind}
    vectors = [backend.asarray(x) for x in arrays["vectors"]]
    bases = tuple(
        make(
            vectors=vectors[arrays["vectors_of"][part]],
            weight=float(arrays["part_weight"][part]),
            **{name: x[part, ...] for name, x in moved.items()},
        )
        for part in range(n_folds + 1)
    )
    return LabelFree(stats, bases)


@functools.cache
def tell_once(message: str) -> None:
    """Warn of it, unless this process has done so: every layer meets the same disk."""
    log.warning("%s", message)
