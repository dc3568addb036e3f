"""Results of a probing run: one tidy table, the paired comparisons, the draws, and where they come from."""

import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError

from .bootstrap import Difference, paired_difference
from .curves import best_cv, matching, only, ranked, top_cv, with_test
from .tables import (
    COLUMNS,
    COMPARISON_COLUMNS,
    CONTROL_COLUMNS,
    CURVE,
    DRAW_COLUMNS,
    PENALTY_COLUMNS,
    RELIABILITY_COLUMNS,
    read_table,
    tidy,
    write_table,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAJORITY, TEXT = "majority", "text"
BASELINES = (MAJORITY, TEXT)
"""Solvers that no layer has: the shares of the training rows, and the words alone."""
_LATER_TABLES = {
    "controls": CONTROL_COLUMNS,
    "penalties": PENALTY_COLUMNS,
    "reliability": RELIABILITY_COLUMNS,
}
"""Tables that runs of earlier versions have not written."""
_ROW_KEY = [*CURVE, "layer", "target", "metric", "split"]


def _empty(columns: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Results:
    """Scores of probes with their provenance.

    Attributes
    ----------
    rows : pandas.DataFrame
        Columns and dtypes of `COLUMNS`.
    comparisons : pandas.DataFrame
        Columns and dtypes of `COMPARISON_COLUMNS`; may be empty.
    provenance : mapping
        What can be written as JSON: model, weights, store, n_layers, primary metric of each labels, seed, versions and
        so on; ``runs`` holds a list of these after `concat`.
    draw_sources : sequence of pandas.DataFrame or pathlib.Path
        What `draws` puts together: tables with the columns of `DRAW_COLUMNS`, or files of them, read when asked for.
    controls, penalties, reliability : pandas.DataFrame
        Columns and dtypes of `CONTROL_COLUMNS`, `PENALTY_COLUMNS` and `RELIABILITY_COLUMNS`; may be empty.

    Raises
    ------
    InputError
        If a column is missing or of another type, or two rows are about the same probe.
    """

    rows: pd.DataFrame
    comparisons: pd.DataFrame = field(default_factory=partial(_empty, COMPARISON_COLUMNS))
    provenance: Mapping[str, Any] = field(default_factory=dict)
    draw_sources: Sequence[pd.DataFrame | Path] = ()
    controls: pd.DataFrame = field(default_factory=partial(_empty, CONTROL_COLUMNS))
    penalties: pd.DataFrame = field(default_factory=partial(_empty, PENALTY_COLUMNS))
    reliability: pd.DataFrame = field(default_factory=partial(_empty, RELIABILITY_COLUMNS))

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tidy(self.rows, COLUMNS))
        object.__setattr__(self, "comparisons", tidy(self.comparisons, COMPARISON_COLUMNS))
        for name, columns in _LATER_TABLES.items():
            object.__setattr__(self, name, tidy(getattr(self, name), columns))
        object.__setattr__(self, "provenance", dict(self.provenance))
        twice = self.rows.duplicated(_ROW_KEY)
        if twice.any():
            probe = ", ".join(f"{key} {value!r}" for key, value in self.rows.loc[twice, _ROW_KEY].iloc[0].items())
            raise InputError(f"the results hold the same probe twice ({probe}): give every run once")

    def to_pandas(self) -> pd.DataFrame:
        """Copy the tidy table."""
        return self.rows.copy()

    @property
    def draws(self) -> pd.DataFrame:
        """Bootstrap draws, with the columns and dtypes of `DRAW_COLUMNS`; StoreError if their file cannot be read."""
        tables = [
            read_table(source, DRAW_COLUMNS)[0] if isinstance(source, Path) else source for source in self.draw_sources
        ]
        return tidy(pd.concat(tables or [_empty(DRAW_COLUMNS)], ignore_index=True), DRAW_COLUMNS)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Provenance of each run that the results come from."""
        return [dict(run) for run in self.provenance.get("runs", [self.provenance])]

    def provenance_json(self, indent: int | None = None) -> str:
        """Write the provenance as JSON; InputError if it holds what JSON does not."""
        try:
            return json.dumps(self.provenance, ensure_ascii=False, indent=indent)
        except (TypeError, ValueError) as error:
            raise InputError(f"the provenance is no JSON ({error}): keep to strings, numbers, lists, dicts") from error

    def primary(self, labels: str) -> str:
        """Name the metric by which the labels are judged: the provenance's, else the first in the table."""
        for run in self.runs:
            if labels in run.get("primary", {}):
                return str(run["primary"][labels])
        return str(self.rows.loc[self.rows["labels"] == labels, "metric"].iloc[0])

    def best(
        self,
        labels: str | None = None,
        site: str | None = None,
        tokens: str | None = None,
        solver: str | None = None,
        metric: str | None = None,
        *,
        model: str | None = None,
        store: str | None = None,
    ) -> pd.Series:
        """Choose the layer with the best cross-validated score.

        Parameters
        ----------
        labels, model, store : str, optional
            Needed if the results hold several.
        site, tokens, solver : str, optional
            Left out: the best of all.
        metric : str, optional
            Left out: the primary metric of the labels.

        Returns
        -------
        pandas.Series
            The test row of the chosen layer, with its cross-validated score as ``cv_value``. Of equal scores the lowest
            layer wins.

        Raises
        ------
        InputError
            If nothing fits, several labels, models or stores fit, or no layer was cross-validated.
        """
        curves = self.curves(labels, metric, model=model, store=store, site=site, tokens=tokens, solver=solver)
        return with_test(curves, best_cv(curves))

    def top(
        self,
        labels: str | None = None,
        site: str | None = None,
        tokens: str | None = None,
        solver: str | None = None,
        metric: str | None = None,
        *,
        model: str | None = None,
        store: str | None = None,
    ) -> pd.Series:
        """Take the last layer of the curve that `best` is on; arguments, result and errors as there."""
        curves = self.curves(labels, metric, model=model, store=store, site=site, tokens=tokens, solver=solver)
        return with_test(curves, top_cv(curves, best_cv(curves)))

    def difference(self, layer: int, other: int, metric: str | None = None, **filters: str | None) -> Difference:
        """Compare any two layers of a curve on the bootstrap draws that they share.

        Parameters
        ----------
        layer, other : int
            Which layers.
        metric : str, optional
            Left out: the primary metric of the labels.
        **filters : str, optional
            ``labels``, ``model``, ``store``, ``site``, ``tokens``, ``solver``: needed where the results hold several.

        Returns
        -------
        Difference
            Score of ``layer`` − score of ``other`` on the test rows, as `paired_difference`.

        Raises
        ------
        InputError
            If a layer, or what is filtered by, is not there, several curves fit, or no draws are kept.
        StoreError
            If the file of the draws cannot be read.
        """
        curves = self.curves(metric=metric, **filters)
        curve = {column: only(curves, column) for column in (*CURVE, "metric")}
        test = curves[curves["split"] == "test"].set_index("layer")["value"]
        draws = self.draws
        draws = draws[matching(draws, curve)]
        pair: list[NDArray[np.float32]] = []
        for one in (layer, other):
            if one not in test.index:
                raise InputError(
                    f"there is no layer {one} with a test score: there is {', '.join(map(str, test.index))}"
                )
            pair.append(draws.loc[draws["layer"] == one].sort_values("draw")["value"].to_numpy())
            if not pair[-1].size:
                raise InputError(f"the results hold no bootstrap draws of layer {one}: run `sonde probe` again")
        return paired_difference(test[layer], test[other], pair[0], pair[1])

    def summary(self, metric: str | None = None, labels: str | None = None) -> pd.DataFrame:
        """Tabulate best layer against top layer, one row per curve, best curves of each labels first.

        Columns: those of `CURVE`, ``metric`` (the primary one unless given), ``cv_value``, ``best_layer``, ``best``,
        ``best_low``, ``best_high``, the same for ``top``, then ``difference``, ``low``, ``high`` (NaN without a
        comparison), ``baseline`` and ``text_baseline``, all on the test rows. Curves without cross-validation are left
        out, and those of other labels if these are named.
        """
        rows = self.rows[self.rows["target"] == "all"]
        rows = rows if labels is None else rows[rows["labels"] == labels]
        rows = rows[
            rows["metric"] == rows["labels"].map({n: metric or self.primary(n) for n in rows["labels"].unique()})
        ]
        intervals = self._intervals(set(rows["metric"]))
        constant = rows[rows["solver"].isin(BASELINES) & (rows["split"] == "test")]
        columns = ("labels", "model", "store", "solver", "value")
        baselines = {tuple(key): value for *key, value in zip(*(constant[name] for name in columns), strict=True)}
        lines: list[dict[str, Any]] = []
        for key, curve in rows[~rows["solver"].isin(BASELINES)].groupby(list(CURVE), sort=False):
            if not (curve["split"] == "cv").any():
                continue
            best = with_test(curve, best_cv(curve))
            top = with_test(curve, top_cv(curve, best))
            line = dict(zip(CURVE, key, strict=True)) | {"metric": best["metric"], "cv_value": best["cv_value"]}
            for name, row in (("best", best), ("top", top)):
                line |= {f"{name}_layer": row["layer"], name: row["value"]}
                line |= {f"{name}_low": row["low"], f"{name}_high": row["high"]}
            compared = (*key, best["metric"], best["layer"], top["layer"])
            low, high = intervals.get(compared, (np.nan, np.nan))
            line |= {"difference": best["value"] - top["value"], "low": low, "high": high}
            for name, kind in (("baseline", MAJORITY), ("text_baseline", TEXT)):
                line[name] = baselines.get((line["labels"], line["model"], line["store"], kind), np.nan)
            lines.append(line)
        return pd.DataFrame(ranked(lines))

    def _intervals(self, metrics: Set[str]) -> dict[tuple[Any, ...], tuple[float, float]]:
        """(Curve, metric, best layer, other layer) -> ends of the interval of their difference."""
        rows = self.comparisons[self.comparisons["metric"].isin(list(metrics))]
        columns = (*CURVE, "metric", "best_layer", "other_layer", "low", "high")
        return {tuple(key): (low, high) for *key, low, high in zip(*(rows[name] for name in columns), strict=True)}

    def baselines(self, kind: str = MAJORITY) -> pd.DataFrame:
        """Take the test rows of a baseline, the majority or ``text``, for the whole ("all") of each labels."""
        wanted = {"solver": kind, "split": "test", "target": "all"}
        return self.rows[matching(self.rows, wanted)]

    def baseline(self, labels: str, metric: str, model: str, store: str, kind: str = MAJORITY) -> float:
        """Look up a baseline's test score; NaN if there is none."""
        rows = self.baselines(kind)
        wanted = {"labels": labels, "metric": metric, "model": model, "store": store}
        found = rows.loc[matching(rows, wanted), "value"]
        return float(found.iloc[0]) if len(found) else float("nan")

    def plot(
        self,
        labels: str | None = None,
        metric: str | None = None,
        *,
        ax: "Axes | None" = None,
        site: str | None = None,
        tokens: str | None = None,
        solver: str | None = None,
        model: str | None = None,
        store: str | None = None,
    ) -> "Axes":
        """Draw the layer curves of one labels and metric; arguments as in `best`, ``ax`` to draw into."""
        from .plot import plot_curves

        filters = {"model": model, "store": store, "site": site, "tokens": tokens, "solver": solver}
        return plot_curves(self, labels, metric, ax=ax, **filters)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write each table, ``results.parquet`` last, at once or not at all.

        Raises
        ------
        InputError
            If the provenance cannot be written as JSON.
        StoreError
            If the folder cannot be written.
        """
        provenance = self.provenance_json()
        # The results come last: a folder that has them is complete.
        write_table(Path(folder, "draws.parquet"), self.draws, provenance)
        write_table(Path(folder, "comparisons.parquet"), self.comparisons, provenance)
        for name in _LATER_TABLES:
            write_table(Path(folder, f"{name}.parquet"), getattr(self, name), provenance)
        return write_table(Path(folder, "results.parquet"), self.rows, provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Results":
        """Read what `save` wrote, from its folder or from ``results.parquet`` itself.

        Raises
        ------
        StoreError
            If there is nothing, or something else.
        """
        path = Path(path)
        file = path / "results.parquet" if path.is_dir() else path
        if not file.is_file():
            hint = "probe it first" if (path / "zarr.json").is_file() else "run `sonde probe` or check the path"
            raise StoreError(f"no results at {path}: {hint}")
        rows, provenance = read_table(file, COLUMNS)
        comparisons, _ = read_table(file.with_name("comparisons.parquet"), COMPARISON_COLUMNS)
        later = {name: file.with_name(f"{name}.parquet") for name in _LATER_TABLES}
        known = {name: read_table(table, _LATER_TABLES[name])[0] for name, table in later.items() if table.is_file()}
        return cls(rows, comparisons, provenance, (file.with_name("draws.parquet"),), **known)

    @classmethod
    def concat(cls, results: Sequence["Results"]) -> "Results":
        """Put several results into one; the provenance keeps each under ``runs``.

        Raises
        ------
        InputError
            If there are none, or two hold the same probe.
        """
        if not results:
            raise InputError("no results to put together: give at least one")
        if len(results) == 1:
            return results[0]
        rows = pd.concat([one.rows for one in results], ignore_index=True)
        # Two solvers on one split share their baseline.
        again = rows.duplicated() & rows["solver"].isin(BASELINES)
        return cls(
            rows[~again].reset_index(drop=True),
            pd.concat([one.comparisons for one in results], ignore_index=True),
            {"runs": [run for one in results for run in one.runs]},
            [source for one in results for source in one.draw_sources],
            **{n: pd.concat([getattr(one, n) for one in results], ignore_index=True) for n in _LATER_TABLES},
        )

    def __repr__(self) -> str:
        head = f"Results: {len(self.rows):,} scores, {self.rows['labels'].nunique()} set(s) of labels"
        columns = ["labels", "store", "site", "tokens", "solver", "metric", "best_layer", "best", "top_layer", "top"]
        summary = self.summary()
        if summary.empty:
            return head
        return f"{head}\n{summary[columns].to_string(index=False, float_format='{:.3f}'.format)}"

    def _repr_html_(self) -> str:
        from .notebook import card

        return card(self)

    def curves(self, labels: str | None = None, metric: str | None = None, **filters: str | None) -> pd.DataFrame:
        """Take the ``cv`` and ``test`` rows of the whole ("all") of one labels and metric.

        Arguments and errors as in `best`, but several models and stores may stay together.
        """
        rows = self.rows[(self.rows["target"] == "all") & ~self.rows["solver"].isin(BASELINES)]
        for column, value in ({"labels": labels} | filters).items():
            known = rows[column].unique()
            if value is not None:
                rows = rows[rows[column] == value]
                if rows.empty:
                    raise InputError(f"the results hold no {column} {value!r}: there is {', '.join(known)}")
        if rows.empty:
            raise InputError("the results hold no probe: run `sonde probe` again")
        name = only(rows, "labels")
        wanted = metric or self.primary(name)
        chosen = rows[rows["metric"] == wanted]
        if chosen.empty:
            raise InputError(f"{name!r} has no metric {wanted!r}: there is {', '.join(rows['metric'].unique())}")
        return chosen
