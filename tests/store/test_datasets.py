"""One layer as a dataset of torch: the right rows and targets, once per epoch, in any process."""

import itertools
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, random_split

from sonde.errors import CorruptStoreError, InputError, StoreError
from sonde.store import ArraySpec
from sonde.store.datasets import LayerRows, LayerStream, torch_dataset

# Ranges of 4, the last of 3; rows 2, 12 to 15 (a whole range) and 41 were skipped.
N, SKIPPED = 43, {2: "broken", **dict.fromkeys(range(12, 16), "too long"), 41: "broken"}
VALID = [row for row in range(N) if row not in SKIPPED]
# Forking a process of many threads is what torch does on Linux.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
crowded = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def long(build: Callable[..., Any], tmp_path: Path) -> Any:
    return build(
        tmp_path / "run.zarr", n_samples=N, skipped=SKIPPED, arrays=(ArraySpec("resid_post", "last", (0, 3), 8),)
    )


def vectors(example: Any, row: int = 1) -> torch.Tensor:
    """What the example's layer must hold, float32 ``[sample, hidden]``."""
    return torch.from_numpy(example.values["resid_post/last"][row].astype(np.float32))


def order(example: Any, stream: Any) -> list[int]:
    """Rows of the store in the order in which a loader, or dataset, hands out their vectors."""
    by_vector = {tuple(x.tolist()): row for row, x in enumerate(vectors(example))}
    return [by_vector[tuple(x.tolist())] for batch in stream for x in batch.reshape(-1, 8).float()]


def map_style(*arguments: Any, **options: Any) -> LayerRows:
    dataset = torch_dataset(*arguments, **options)
    assert isinstance(dataset, LayerRows)
    return dataset


def stream(*arguments: Any, **options: Any) -> LayerStream:
    dataset = torch_dataset(*arguments, iterable=True, **options)
    assert isinstance(dataset, LayerStream)
    return dataset


def flip(example: Any, row: int, index: int) -> None:
    chunk = example.chunk("resid_post/last", row, index)
    data = bytearray(chunk.read_bytes())
    data[7] ^= 2
    chunk.write_bytes(data)


# Rows and targets


@pytest.mark.parametrize("iterable", [False, True])
def test_skipped_samples_are_left_out(long: Any, iterable: bool) -> None:
    dataset = torch_dataset(long.store, 3, iterable=iterable, shuffle=False)
    assert len(dataset) == len(VALID)
    assert dataset.rows.tolist() == VALID
    assert dataset.rows.dtype == np.int64
    assert isinstance(dataset, IterableDataset if iterable else Dataset)
    assert isinstance(dataset, IterableDataset) == iterable
    items = list(dataset) if iterable else [dataset[i] for i in range(len(dataset))]
    assert torch.equal(torch.stack(items).float(), vectors(long)[VALID])


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float16", None, torch.float16),
        ("bfloat16", "float32", torch.float32),
        ("float32", torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("iterable", [False, True])
def test_vectors_come_as_stored_or_as_asked(
    build: Callable[..., Any], tmp_path: Path, stored: str, asked: Any, expected: torch.dtype, iterable: bool
) -> None:
    example = build(tmp_path / "run.zarr", dtype=stored)
    options = {"site": "resid_post", "tokens": "mean", "iterable": iterable, "shuffle": False}
    x = next(iter(DataLoader(torch_dataset(example.store, 7, dtype=asked, **options), batch_size=10)))
    assert x.dtype == expected
    np.testing.assert_array_equal(x.double().numpy(), example.values["resid_post/mean"][2].astype(np.float64))


LABELS: dict[str, tuple[list[Any], Any, Callable[..., torch.Tensor]]] = {
    "binary": ([True, False], [1.0, 0.0], torch.nn.functional.binary_cross_entropy_with_logits),
    "multiclass": (["red", "blue"], [1, 0], torch.nn.functional.cross_entropy),
    "multilabel": ([["b"], ["a", "b"]], [[0.0, 1.0], [1.0, 1.0]], torch.nn.functional.binary_cross_entropy_with_logits),
    "regression": ([0.25, -3.5], [0.25, -3.5], torch.nn.functional.mse_loss),
}


@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize("kind", LABELS)
def test_targets_are_what_torch_s_losses_take(long: Any, kind: str, iterable: bool) -> None:
    values, targets, loss = LABELS[kind]
    labelled = [row for row in range(N) if row % 5 != 0]
    assert long.store.add_labels("y", [f"s{i}" for i in labelled], [values[i % 2] for i in labelled]).kind == kind
    dataset = torch_dataset(long.store, 3, labels="y", iterable=iterable, shuffle=False, dtype="float32")
    rows = [row for row in VALID if row % 5 != 0]
    assert dataset.rows.tolist() == rows
    assert len(dataset) == len(rows)
    [(x, y)] = DataLoader(dataset, batch_size=N)
    assert torch.equal(x, vectors(long)[rows])
    assert y.tolist() == [targets[row % 2] for row in rows]
    logits = torch.zeros(len(rows), 2) if kind in ("multiclass", "multilabel") else torch.zeros(len(rows))
    assert loss(logits, y).isfinite()


def test_labels_that_the_store_lacks_are_an_error(long: Any) -> None:
    with pytest.raises(StoreError, match="no labels 'y'"):
        torch_dataset(long.store, 3, labels="y")


# Map-style


def test_rows_are_found_in_any_order_and_more_than_once(long: Any) -> None:
    dataset = map_style(long.store, 3, dtype="float32")
    wanted = np.random.default_rng(0).integers(len(dataset), size=100).tolist()
    x = torch.stack(dataset.__getitems__(wanted))
    assert torch.equal(x, vectors(long)[dataset.rows[wanted]])
    assert torch.equal(dataset[-1], vectors(long)[42])
    assert torch.equal(dataset[torch.tensor(3)], vectors(long)[4])
    for item in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"no item {item}: the dataset has 37"):
            dataset[item]
    assert dataset.__getitems__([]) == []


def test_a_batch_reads_each_of_its_chunks_once(long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read_into = type(long.store.location).read_into

    def counting(location: Any, key: str, *rest: Any) -> Any:
        opened.append(key)
        return read_into(location, key, *rest)

    dataset = map_style(long.store, 3)
    monkeypatch.setattr(type(long.store.location), "read_into", counting)
    shuffled = np.random.default_rng(0).permutation(len(dataset)).tolist()
    dataset.__getitems__(shuffled)
    # Ten of the eleven ranges hold something.
    assert len(opened) == len(set(opened)) == 10
    opened.clear()
    first = np.flatnonzero(dataset.rows < 4).tolist()
    dataset.__getitems__(first)
    dataset.__getitems__(first)
    assert len(opened) == 1


def test_what_is_done_to_an_item_does_not_reach_the_next_reader(long: Any) -> None:
    long.store.add_labels("y", long.store.ids.tolist(), [1.5] * N)
    for dataset in (map_style(long.store, 3, labels="y"), stream(long.store, 3, labels="y", shuffle=False)):
        for _ in range(2):
            x, y = next(iter(dataset))
            assert torch.equal(x.float(), vectors(long)[0])
            assert y == 1.5
            assert x.untyped_storage().nbytes() == 8 * 2  # a view would keep its whole chunk
            x.zero_()
            y.zero_()


def test_a_shuffling_loader_and_torch_s_splits_see_every_row_once(long: Any) -> None:
    dataset = map_style(long.store, 3)
    assert sorted(order(long, DataLoader(dataset, batch_size=5, shuffle=True))) == VALID
    parts = random_split(dataset, [20, 17], torch.Generator().manual_seed(0))
    assert all(isinstance(part, Subset) for part in parts)
    assert sorted(row for part in parts for row in order(long, DataLoader(part, batch_size=8))) == VALID


# Iterable


def test_without_shuffling_the_order_is_the_store_s(long: Any) -> None:
    dataset = stream(long.store, 3, shuffle=False)
    assert order(long, dataset) == order(long, dataset) == VALID


def test_every_epoch_has_another_order_that_the_seed_decides(long: Any) -> None:
    one, again, other = (stream(long.store, 3, seed=seed) for seed in (1, 1, 2))
    epochs = [order(long, one) for _ in range(3)]
    assert all(sorted(epoch) == VALID for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(VALID)}) == 4
    assert [order(long, again) for _ in range(3)] == epochs
    assert order(long, other) not in epochs


def test_rows_are_mixed_beyond_their_chunk(long: Any) -> None:
    epoch = order(long, stream(long.store, 3))
    chunks = [row // 4 for row in epoch]
    changes = sum(a != b for a, b in itertools.pairwise(chunks))
    assert changes > 15
    # Chunks come in a shuffled order too: early rows of the store are not all early in the epoch.
    assert np.mean([epoch.index(row) for row in VALID[:8]]) > 6


def test_an_iteration_that_is_given_up_does_not_disturb_the_next(long: Any) -> None:
    dataset = stream(long.store, 3)
    begun = [next(iter(dataset)) for _ in range(2)]
    assert sorted(order(long, dataset)) == VALID
    one, two = iter(dataset), iter(dataset)
    assert sorted(order(long, [x for pair in zip(one, two, strict=True) for x in pair])) == sorted(VALID * 2)
    assert len(begun) == 2


# Worker processes


@forks
@crowded
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_the_ranges_without_overlap_or_loss_and_shuffle_anew(
    long: Any, workers: int, persistent: bool
) -> None:
    def epochs() -> list[list[int]]:
        options: dict[str, Any] = {"multiprocessing_context": "fork", "persistent_workers": persistent}
        loader = DataLoader(stream(long.store, 3, seed=4), batch_size=4, num_workers=workers, **options)
        return [order(long, loader) for _ in range(3)]

    found = epochs()
    assert all(sorted(epoch) == VALID for epoch in found)
    assert len({tuple(epoch) for epoch in found}) == 3
    assert epochs() == found


@forks
@crowded
def test_more_workers_than_ranges_and_loaders_of_other_sizes_lose_nothing(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    arrays = (ArraySpec("resid_post", "last", (0, 3), 8),)
    example = build(tmp_path / "run.zarr", n_samples=5, arrays=arrays)
    dataset = stream(example.store, 3)
    for workers in (0, 1, 3, 2, 0):
        context = "fork" if workers else None
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=context)
        assert sorted(order(example, loader)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("context", [pytest.param("fork", marks=forks), "spawn"])
def test_both_datasets_work_in_processes_of_either_start_method(long: Any, context: str) -> None:
    long.store.add_labels("y", long.store.ids.tolist(), ["red", "blue", "green"] * 14 + ["red"])
    options: dict[str, Any] = {"batch_size": 8, "num_workers": 2, "multiprocessing_context": context}
    dataset = map_style(long.store, 3, labels="y", dtype="float32")
    dataset[0]  # what is open and cached here must not be in the workers' way
    batches = list(DataLoader(dataset, **options))
    assert torch.equal(torch.cat([x for x, _ in batches]), vectors(long)[VALID])
    assert torch.cat([y for _, y in batches]).tolist() == [(2, 0, 1)[row % 3] for row in VALID]
    streamed = stream(long.store, 3)
    epochs = [order(long, DataLoader(streamed, **options)) for _ in range(1 if context == "spawn" else 2)]
    assert all(sorted(epoch) == VALID for epoch in epochs)


def test_a_copy_by_pickle_is_a_dataset_of_its_own_that_holds_no_activations(long: Any) -> None:
    dataset, shuffled = map_style(long.store, 3), stream(long.store, 3)
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 3000
    copy = pickle.loads(data)
    assert isinstance(copy, LayerRows)
    assert isinstance(copy, Dataset)
    assert torch.equal(copy[5], dataset[5])
    again = pickle.loads(pickle.dumps(shuffled))
    assert isinstance(again, IterableDataset)
    assert order(long, again) == order(long, shuffled)


# Errors


@forks
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("iterable", [False, True])
def test_a_damaged_chunk_is_an_error_that_names_it(long: Any, iterable: bool, workers: int) -> None:
    flip(long, 1, 6)
    flip(long, 0, 0)
    context = "fork" if workers else None
    dataset = torch_dataset(long.store, 3, iterable=iterable)
    with pytest.raises(CorruptStoreError, match="range 6 of layer 3 of resid_post/last") as caught:
        list(DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context))
    # The frames hold the loader in a cycle, and a loader that the garbage collector ends waits for its workers in vain.
    traceback.clear_frames(caught.tb)


def test_a_range_of_which_nothing_is_wanted_is_not_read(long: Any) -> None:
    flip(long, 1, 3)  # rows 12 to 15
    flip(long, 1, 0)
    long.store.add_labels("y", [f"s{i}" for i in range(4, N)], [1.0, 2.5, 3.0] * 13)
    for iterable in (False, True):
        loader = DataLoader(torch_dataset(long.store, 3, labels="y", iterable=iterable), batch_size=5)
        assert sum(len(y) for _, y in loader) == len([row for row in VALID if row >= 4])


def test_a_store_that_is_not_finished_is_refused_with_the_way_out(build: Callable[..., Any], tmp_path: Path) -> None:
    store = build(tmp_path / "run.zarr", commit=[1]).store
    with pytest.raises(StoreError, match=r"2 of 3 ranges are not committed; finish it with `sonde extract --resume`"):
        torch_dataset(store, 3)


def test_the_array_may_be_left_out_where_one_alone_fits(example: Any) -> None:
    assert map_style(example.store, 1, site="vision/resid_post")[0].shape == (5,)
    assert map_style(example.store, 3, tokens="last")[0].shape == (8,)
    for options, n in (({}, 3), ({"site": "resid_post"}, 2), ({"tokens": "mean"}, 2), ({"tokens": "first"}, 0)):
        with pytest.raises(StoreError, match=f"{n} arrays fit .*'resid_post/last', .*'vision/resid_post/mean'"):
            torch_dataset(example.store, 3, **options)
    with pytest.raises(StoreError, match="no activations 'resid_post/first'"):
        torch_dataset(example.store, 3, site="resid_post", tokens="first")
    with pytest.raises(StoreError, match=r"has no layer 4; it has \[0, 3, 7\]"):
        torch_dataset(example.store, 4, tokens="last")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int64"}, "dtype 'int64' is not of floating point"),
        ({"dtype": "float31"}, "dtype 'float31' is not of floating point"),
        ({"dtype": "nn"}, "dtype 'nn' is not of floating point"),
        ({"dtype": torch.int32}, "dtype torch.int32 is not of floating point"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_options_that_cannot_be_used_are_named(long: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        torch_dataset(long.store, 3, **options)
