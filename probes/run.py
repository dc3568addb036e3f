"""Probing a store: every chosen layer as a task of its own, then tables."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonde.callbacks import Callback
from sonde.errors import InputError, StoreError
from sonde.store import Labels, Store
from sonde.watching import Watch, watched

from .assemble import about_run, assemble, origin_of, save_scores
from .baseline import text_baseline
from .bootstrap import cluster_weights
from .class_weights import ClassWeight
from .control import control_task as make_control_task
from .controls import Controls
from .evaluate import warn_of_missing_positives
from .fit import ALPHAS, Library, Solver, ensure_solvable
from .layers import LayerTask, ProbedLayer, Recipe, layer_tasks
from .parts import LAYERS, Parts
from .probe import save_probes
from .problem import Problem, columns_of, names_of
from .results import Results
from .ridge import alpha_array
from .schedule import run_tasks

log = logging.getLogger(__name__)


def probe(
    store: Store | str | os.PathLike[str],
    labels: str,
    *,
    where: Mapping[str, str] | None = None,
    title: str | None = None,
    solver: Solver = "ridge",
    sites: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    class_weight: ClassWeight | None = None,
    backend: Library = "sonde",
    test_size: float = 0.25,
    n_folds: int = 5,
    n_draws: int = 1000,
    seed: int = 0,
    permutations: int = 0,
    control_task: str | None = None,
    codelength: bool = False,
    erase: str | None = None,
    transfer: str | None = None,
    texts: Mapping[str, str] | None = None,
    cache: bool = True,
    device: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
) -> Results:
    """Fit linear probes to every layer of a store.

    The penalty is chosen by cross-validation over group-wise folds of the training samples, the best layer by its
    cross-validated score; test samples are scored once.

    Parameters
    ----------
    store
        A complete store, or where it is.
    labels
        Name of labels in the store.
    where
        Only samples of which these labels or columns say this: ``{"task": "entailment"}``.
    title
        What the results call the labels, if not by their name and ``where``.
    solver
        ``ridge``: least squares on 0/1 targets or values; ``logistic``: sigmoid or softmax; ``mass-mean``: along the
        difference of class means; ``lda``: linear discriminants.
    sites, tokens, layers
        Which activations; all if left out.
    alphas
        Penalties to choose from, on standardised activations: scikit-learn's Ridge ``alpha``, logistic ``1 / C``.
    class_weight
        Of logistic probes: ``"balanced"``, or weights by class.
    backend
        Whose ridge and logistic regression: ``sonde``, ``sklearn`` or ``cuml``.
    test_size
        Share of samples to test, whole groups; a ``split`` column in the store overrides it.
    n_folds, n_draws, seed
        Folds of the cross-validation, draws of the cluster bootstrap, seed of all that is random.
    permutations
        Permutations of the labels whose ridge probes make the null of every layer.
    control_task
        Labels, or a column of the store, that say of what type each sample is: every layer is also probed for random
        labels of the types.
    codelength
        Whether logistic probes also give the online codelength of the labels.
    erase
        Labels of which linear probes could know nothing any more: every layer is also probed after LEACE has erased
        them, by the training samples that have them. The labels themselves, to see that nothing is left, or others.
    transfer
        Labels, or a column of the store, that say of what variant of the question each sample is: probes trained on
        one are also tested on all others.
    texts
        Prompt of each sample by id: what words alone say is scored as another baseline.
    cache
        Whether what no label changes is kept in the store, for the next labels; see `sonde.probes.cache`.
    device
        Torch device to compute on, such as ``cuda``; left out, numpy.
    scheduler
        Address of a Dask scheduler, ``tcp://…``; its workers must see the store at the same place.
    workers
        Local worker processes; left out, threads of this process. A script must ask for them under
        ``if __name__ == "__main__":``, as for all processes of Python.
    out
        Folder for the tables ``results``, ``comparisons``, ``controls``, ``draws`` and ``scores`` and the probes; must
        not exist. While layers are probed, those that are done are in its folder ``layers``.
    resume
        Go on with the layers that a run to ``out`` has left, or begin it.
    callbacks
        Who is told how it goes, after every layer. Left out, a progress bar at a terminal or in a notebook; ``()`` for
        none.

    Returns
    -------
    Results

    Raises
    ------
    StoreError
        If the store is not complete or lacks what is asked for, or ``out`` exists, or was begun with other options.
    InputError
        If an option, the labels or the activations cannot be used, or no scheduler answers.
    WorkerError
        If worker processes keep dying.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    tasks = layer_tasks(store, sites, tokens, layers)
    if not store.complete:
        raise StoreError(
            f"{store.location} is not finished: {len(store.missing)} of {len(store.ranges)} ranges are missing; "
            "finish it with `sonde extract --resume`"
        )
    problem = Problem.of(store, labels, where=where, title=title, test_size=test_size, n_folds=n_folds, seed=seed)
    ensure_solvable(problem, solver, backend, class_weight)
    controls = Controls(
        permutations,
        None if control_task is None else make_control_task(problem, names_of(store, control_task).tolist(), seed),
        codelength,
        None if erase is None else _columns_to_erase(store.labels(erase)),
        None if transfer is None else names_of(store, transfer),
        seed,
    )
    controls.check(problem, solver, backend, class_weight)
    warn_of_missing_positives(problem)
    penalties = ALPHAS[solver] if alphas is None else alpha_array(alphas)
    recipe = Recipe(solver, penalties, device, backend, class_weight, cache, controls)
    draws = cluster_weights(problem.groups[problem.split.test].tolist(), n_draws, seed)
    # The folder comes first: hours of probing must not end at one that cannot be made.
    with ExitStack() as stack:
        path = stack.enter_context(_folder(out, resume))
        if path is not None and (path / "results.parquet").is_file():
            log.info("%s is finished", path)
            return Results.load(path)
        about = about_run(store, problem, recipe, n_draws)
        parts = None if path is None else Parts(path, about, origin_of(store, problem, seed))
        facts = {"run": "probe", "unit": "layers", "out": None if path is None else str(path)}
        watch = stack.enter_context(watched(callbacks, about | origin_of(store, problem, seed) | facts))
        done = parts.begin(tasks) if parts is not None else []
        known = {(probed.spec.name, probed.probe.layer) for probed in done}
        left = [task for task in tasks if (task.spec.name, task.layer) not in known]
        if done:
            watch.on_progress(len(done), len(tasks))
        for probed in run_tasks(
            LayerTask.run,
            left,
            (problem, draws, recipe),
            scheduler=scheduler,
            workers=workers,
            device=device,
            task_bytes=max((task.nbytes(problem, store.schema.numpy_dtype.itemsize) for task in left), default=0),
        ):
            done.append(probed)
            if parts is not None:
                parts.add(probed)
            watch.on_progress(len(done), len(tasks))
        order = {(task.spec.name, task.layer): i for i, task in enumerate(tasks)}
        done.sort(key=lambda probed: order[probed.spec.name, probed.probe.layer])
        if solver != "mass-mean":
            _warn_of_edges(done, penalties, int((problem.split.folds >= 0).sum()))
        words = None if texts is None else text_baseline([texts.get(i, "") for i in store.ids.tolist()], problem)
        results = assemble(store, problem, draws, done, recipe, seed, words)
        if path is not None and parts is not None:
            save_probes(path, [probed.probe for probed in done])
            save_scores(path, problem, store.ids, done)
            # The results come last: a folder that has them is complete.
            results.save(path)
            parts.remove()
        _tell(watch, results)
    return results


def _tell(watch: Watch, results: Results) -> None:
    """Give out the scores of all targets together, a layer at a time; baselines are of none."""
    rows = results.rows
    rows = rows[(rows["target"] == "all") & (rows["layer"] >= 0)]
    for layer in sorted(rows["layer"].unique()):
        scores = rows[rows["layer"] == layer]
        names = scores["site"] + "/" + scores["tokens"] + "/" + scores["metric"] + "/" + scores["split"]
        watch.on_result(int(layer), dict(zip(names, scores["value"].astype(float), strict=True)))


def _columns_to_erase(labels: Labels) -> NDArray[np.float64]:
    columns, _ = columns_of(labels)
    columns[~labels.present] = np.nan
    return columns


@contextmanager
def _folder(out: str | os.PathLike[str] | None, resume: bool) -> Iterator[Path | None]:
    """Make the folder of a run, and remove it again if nothing came to be in it before an error."""
    if out is None:
        if resume:
            raise InputError("a run without a folder leaves nothing to resume: give `out`")
        yield None
        return
    path = Path(out)
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not (resume and ((path / LAYERS).is_dir() or (path / "results.parquet").is_file())):
            raise StoreError(
                f"{path} exists already; choose another --out, or go on with a run that was cut off with --resume"
            ) from None
    except OSError as error:
        raise StoreError(f"cannot make the folder {path} ({error.strerror}); choose another --out") from error
    try:
        yield path
    except BaseException:
        if any(path.glob(f"{LAYERS}/*.parquet")):
            log.warning("the layers that are done are kept in %s: --resume goes on with the others", path)
        else:
            shutil.rmtree(path / LAYERS, ignore_errors=True)
            with suppress(OSError):
                path.rmdir()
        raise


def _warn_of_edges(done: Sequence[ProbedLayer], alphas: NDArray[np.float64], n_train: int) -> None:
    """Say once how many layers chose a penalty beyond which a better one may lie."""
    if alphas.size < 2:
        return
    edges = {"weakest": alphas.min()}
    # Standardised columns have sums of squares of n: a penalty above that leaves little of any probe, and to choose it
    # says that there is nothing to learn.
    if alphas.max() < n_train:
        edges["strongest"] = alphas.max()
    for name, edge in edges.items():
        n_layers = sum(edge in probed.probe.alpha for probed in done)
        if n_layers:
            log.warning(
                "%d of %d layers chose the %s penalty, alpha %g: beyond it may be a better one; widen the alphas",
                n_layers,
                len(done),
                name,
                edge,
            )
