"""What a store must hold, in plain lists and dictionaries."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.store import ArraySpec, Labels, TokenRange, bfloat16

Columns = dict[str, list[str]]
Tokens = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]
POOLINGS = ("last", "max", "mean", "image_mean")


class Model:
    """Samples, committed ranges and labels.

    ``truth`` holds for each committed sample and array what was given to the writer: ``[layer, hidden]``, or for all
    tokens ``[layer, token, hidden]`` with token ids and modality.
    """

    def __init__(self, dtype: str, arrays: Sequence[ArraySpec], n_samples: int, range_size: int) -> None:
        self.quantized = dtype == "int8"
        self.dtype = bfloat16 if dtype == "bfloat16" else np.dtype("float32" if self.quantized else dtype)
        self.arrays = list(arrays)
        self.range_size = range_size
        self.parts: list[int] = []
        self.columns: Columns = {"id": [], "group": []}
        self.committed: set[int] = set()
        self.truth: dict[int, dict[str, Any]] = {}
        self.skipped: dict[int, str] = {}
        self.labels: dict[str, tuple[str, list[Any]]] = {}
        self._draws = np.random.default_rng(0)
        self.append(self.new_columns(n_samples))

    # Samples

    @property
    def n_samples(self) -> int:
        return sum(self.parts)

    def new_columns(self, n: int) -> Columns:
        first = self.n_samples
        return {"id": [f"s{i}-{n}" for i in range(first, first + n)], "group": [f"g{i // 3}" for i in range(n)]}

    def append(self, new: Columns) -> None:
        self.parts.append(len(new["id"]))
        self.columns = {name: values + new[name] for name, values in self.columns.items()}

    def _ranges(self) -> list[tuple[int, int]]:
        bounds, end = [], 0
        for size in self.parts:
            start, end = end, end + size
            while start < end:
                bounds.append((start, min(start + self.range_size, end)))
                start += self.range_size
        return bounds

    def bounds(self, index: int) -> tuple[int, int]:
        return self._ranges()[index]

    @property
    def missing(self) -> set[int]:
        return set(range(len(self._ranges()))) - self.committed

    @property
    def rows(self) -> list[int]:
        """Samples of committed ranges."""
        return [row for index in sorted(self.committed) for row in range(*self.bounds(index))]

    @property
    def valid(self) -> list[int]:
        return [row for row in self.rows if row not in self.skipped]

    # Activations

    @property
    def array_names(self) -> list[str]:
        return [spec.name for spec in self.arrays]

    @property
    def poolable(self) -> set[str]:
        """Ways of pooling that are not there yet."""
        there = {spec.tokens for spec in self.arrays if spec.site == "z"}
        return set(POOLINGS) - there if "all" in there else set()

    def pool(self, tokens: str) -> None:
        [whole] = [spec for spec in self.arrays if spec.ragged]
        self.arrays.append(ArraySpec(whole.site, tokens, whole.layers, whole.hidden, pooled=True))

    def chunk_patterns(self, index: int) -> list[str]:
        """Where the format puts the objects of a range."""
        patterns = []
        for spec in self.arrays:
            folder = f"activations/{spec.name}"
            whole = [f"{folder}/{index:08d}/*/c.*"]
            patterns += whole if spec.ragged else [f"{folder}/c.*.{index}.0", f"{folder}_scale/c.0.{index}"]
        return patterns

    def draw_range(self, index: int, skipped: Mapping[int, str]) -> dict[int, dict[str, Any]]:
        """New activations of a range, some of them not finite where the dtype keeps such."""
        truth: dict[int, dict[str, Any]] = {}
        for row in range(*self.bounds(index)):
            truth[row] = {}
            for spec in self.arrays:
                if spec.pooled:
                    continue
                n = int(self._draws.integers(0, 5))
                shape = (len(spec.layers), n, spec.hidden) if spec.ragged else (len(spec.layers), spec.hidden)
                x = self._draws.normal(size=shape).astype(self.dtype)
                if not self.quantized and not spec.ragged and row % 3 == 0:
                    x[:, 0] = [np.inf, -np.inf, np.nan, -0.0][row % 4]
                truth[row][spec.name] = (x, self._draws.integers(0, 9, n), np.arange(n) % 2) if spec.ragged else x
        return truth

    def commit(self, index: int, truth: Mapping[int, dict[str, Any]], skipped: Mapping[int, str]) -> None:
        self.committed.add(index)
        self.truth |= truth
        self.skipped = dict(sorted((self.skipped | skipped).items()))

    def forget(self, index: int) -> None:
        self.committed.discard(index)
        for row in range(*self.bounds(index)):
            self.truth.pop(row, None)
            self.skipped.pop(row, None)

    def check(self, spec: ArraySpec, layer: int, row: int, x: np.ndarray[Any, Any]) -> None:
        """Hold one sample of one layer against what was written: bit by bit, int8 to half a step of its scale."""
        assert x.dtype == self.dtype
        if row in self.skipped:
            assert np.isnan(x.astype(np.float32)).all()
            assert len(x) == (0 if spec.ragged else spec.hidden)
            return
        name = f"{spec.site}/all" if spec.pooled or spec.ragged else spec.name
        values = self.truth[row][name]
        wanted = (values if name == spec.name and not spec.ragged else values[0])[spec.layers.index(layer)]
        if spec.pooled:
            self._check_pooled(spec.tokens, wanted, values[2], x)
        elif self.quantized:
            assert x.shape == wanted.shape
            assert (np.abs(x - wanted) <= _half_a_step(wanted)).all()
        else:
            assert (x.shape, x.tobytes()) == (wanted.shape, np.ascontiguousarray(wanted).tobytes())

    def check_layout(self, part: TokenRange) -> None:
        """Hold token ids, modality and lengths of a range against what was written."""
        for i, row in enumerate(range(part.rows.start, part.rows.stop)):
            here = slice(part.offsets[i], part.offsets[i + 1])
            _, ids, modality = (None, [], []) if row in self.skipped else self.truth[row]["z/all"]
            assert part.token_ids[here].tolist() == list(ids)
            assert part.modality[here].tolist() == list(modality)

    def _check_pooled(self, tokens: str, values: Any, modality: Any, x: np.ndarray[Any, Any]) -> None:
        kept = values[modality == 1] if tokens == "image_mean" else values
        if not len(kept):
            assert np.isnan(x.astype(np.float32)).all()
            return
        wide = kept.astype(np.float64)
        wanted = {"last": wide[-1], "max": wide.max(axis=0)}.get(tokens, wide.mean(axis=0))
        # Rounded to the store's dtype; int8 was rounded as tokens and is again as a vector.
        step = 2 * _half_a_step(values).max() + _half_a_step(wanted) if self.quantized else 0
        eps = 2.0**-8 if self.dtype == bfloat16 else float(np.finfo(self.dtype).eps)
        slack = 0 if tokens in ("last", "max") else eps * (np.abs(wanted) + np.abs(wide).max())
        assert (np.abs(x.astype(np.float64) - wanted) <= step + slack).all()

    # Labels

    def expected_labels(self) -> dict[str, tuple[str, list[Any]]]:
        """Kind and values by name; samples that came later have none."""
        n = self.n_samples
        return {name: (kind, values + [None] * (n - len(values))) for name, (kind, values) in self.labels.items()}

    @staticmethod
    def read_labels(labels: Labels) -> tuple[str, list[Any]]:
        """The values that arrays of labels stand for."""
        plain = labels.values.tolist()
        if labels.kind == "multilabel":
            named = [None if -1 in v else sorted(n for n, on in zip(labels.names, v, strict=True) if on) for v in plain]
            return labels.kind, named
        if labels.kind == "multiclass":
            return labels.kind, [None if v == -1 else labels.names[v] for v in plain]
        return labels.kind, [None if v != v or (labels.kind == "binary" and v == -1) else v for v in plain]


def _half_a_step(x: Any) -> Any:
    """Largest error of int8 for each vector, with room for the rounding of float32."""
    return np.abs(x).max(axis=-1, keepdims=True) / 127 * 0.5001 if x.size else np.zeros(1)
