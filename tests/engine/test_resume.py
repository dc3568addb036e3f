"""An extraction that was cut off goes on where it was, with the same model, data and capture or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.callbacks import OnProgress
from sonde.engine import Sample, extract
from sonde.errors import StoreError
from sonde.store import Store

from ..recorder import Recorder
from .runs import configuration, contents, text_samples
from .tiny import write_model

CAPTURE = {"sites": ["embed", "resid_post"], "tokens": ["last", "mean"]}


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


def samples() -> list[Sample]:
    return [Sample(s.id, prompt=s.prompt, labels={"odd": i % 2 == 1}) for i, s in enumerate(text_samples(14))]


def interrupted(config: dict[str, Any], calls: int) -> Store:
    """Run until a callback was called so many times, then press Ctrl-C."""
    count = 0

    def press(*progress: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(config, samples=samples(), callbacks=[OnProgress(press)])
    return Store.open(config["run"]["out"])


def test_a_run_that_was_interrupted_anywhere_ends_with_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    calls: list[int] = []
    extract(config, samples=samples(), callbacks=[OnProgress(lambda done, *_: calls.append(done))])
    whole = contents(tmp_path / "run.zarr")
    (tmp_path / "run.zarr").rename(tmp_path / "whole.zarr")
    committed = set()
    for n in range(1, len(calls) + 1):
        store = interrupted(config, n)
        committed.add(len(store.commits))
        kept = {key: data for key, data in contents(tmp_path / "run.zarr").items() if "commits/0" in key}
        assert len(kept) == len(store.commits)
        assert kept.items() <= whole.items()
        todo = sum(len(r) for r in store.missing)
        seen = Recorder()
        resumed = extract(
            config,
            samples=samples(),
            resume=True,
            callbacks=[seen],
        )
        assert resumed.complete
        assert not seen.progress or seen.progress[-1][:2] == (todo, todo), "what is committed is not done again"
        assert contents(tmp_path / "run.zarr") == whole
        (tmp_path / "run.zarr").rename(tmp_path / f"resumed{n}.zarr")
    assert {0, 1, 2, 3, 4} >= committed >= {0, 2}


def test_resuming_nothing_begins_a_store(llama: Path, tmp_path: Path) -> None:
    store = extract(configuration(llama, tmp_path / "run.zarr"), samples=samples(), resume=True)
    assert store.complete


def test_resuming_a_complete_store_does_nothing(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    extract(config, samples=samples())
    files = [path for path in (tmp_path / "run.zarr").rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    seen = Recorder()
    assert extract(
        config,
        samples=samples(),
        resume=True,
        callbacks=[seen],
    ).complete
    assert seen.calls == ["start", "result", "end"]
    after = [path for path in (tmp_path / "run.zarr").rglob("*") if path.is_file()]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in after} == before


def test_settings_that_change_no_value_may_change(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    interrupted(config, 3)
    changed = configuration(llama, tmp_path / "run.zarr", run={"token_budget": 60, "on_error": "skip"})
    del changed["run"]["range_size"]
    assert extract(changed, samples=samples(), resume=True).complete


def changed_prompt() -> list[Sample]:
    return [Sample("s0", prompt="another"), *samples()[1:]]


@pytest.mark.parametrize(
    ("sections", "data", "what"),
    [
        ({"capture": {"sites": ["resid_pre"]}}, samples, r"capture sites: \['resid_post'\] there, \['resid_pre'\] now"),
        ({"capture": {"tokens": ["mean"]}}, samples, r"capture tokens: \['last'\] there, \['mean'\] now"),
        ({"capture": {"layers": [1]}}, samples, r"capture layers: \[0, 1, 2\] there, \[1\] now"),
        ({"capture": {"dtype": "bfloat16"}}, samples, "dtype: 'float32' there, 'bfloat16' now"),
        ({"model": {"attention": "eager"}}, samples, "model attention: 'sdpa' there, 'eager' now"),
        ({"model": {"weights": "random"}}, samples, "model fingerprint"),
        ({"data": {"truncate": 5}}, samples, "data truncate: None there, 5 now"),
        ({"run": {"range_size": 5}}, samples, "range_size 4, now it is 5; leave run.range_size out"),
        ({}, changed_prompt, "data fingerprint"),
        ({}, lambda: samples()[1:], "n_samples: 14 there, 13 now"),
    ],
)
def test_another_model_capture_or_data_set_is_refused_with_what_differs(
    sections: dict[str, Any], data: Callable[[], list[Sample]], what: str, llama: Path, tmp_path: Path
) -> None:
    interrupted(configuration(llama, tmp_path / "run.zarr"), 3)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=rf"run\.zarr was begun with.*{what}"):
        extract(configuration(llama, tmp_path / "run.zarr", **sections), samples=data(), resume=True)
    assert contents(tmp_path) == before


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "model")
    config = configuration(folder, tmp_path / "run.zarr")
    interrupted(config, 3)
    write_model("llama", folder, seed=1)
    with pytest.raises(StoreError, match="was begun with another model fingerprint"):
        extract(config, samples=samples(), resume=True)


def test_labels_that_a_cut_off_run_had_no_time_for_are_written_on_resuming(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    store = interrupted(config, 1)
    store.location.clear("labels/odd")
    assert store.label_names == []
    resumed = extract(config, samples=samples(), resume=True)
    assert resumed.labels("odd").values.tolist() == [0, 1] * 7


def test_a_store_that_another_process_writes_to_is_refused(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    store = interrupted(config, 3)
    with store.location.lock(), pytest.raises(StoreError, match="another process is writing"):
        extract(config, samples=samples(), resume=True)
