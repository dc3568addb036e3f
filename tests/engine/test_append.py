"""More samples later: new ranges in the same store, made by the same model, data settings and capture."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.callbacks import OnProgress
from sonde.engine import Sample, extract
from sonde.errors import InputError, StoreError
from sonde.store import Store

from .runs import configuration, contents, text_samples, values
from .tiny import write_model

CAPTURE = {"sites": ["embed", "resid_post"], "tokens": ["last", "mean"]}


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


def some(start: int, stop: int, **labels: Any) -> list[Sample]:
    return [Sample(s.id, prompt=s.prompt, labels=labels) for s in text_samples(20)[start:stop]]


def test_appended_samples_have_the_values_of_one_run_over_all(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    before = extract(config, samples=some(0, 6))
    kept, old = contents(tmp_path / "run.zarr"), values(before)
    store = extract(config, samples=some(6, 13), append=True)
    store = extract(config, samples=some(13, 15), append=True)
    whole = extract(configuration(llama, tmp_path / "whole.zarr", capture=CAPTURE), samples=some(0, 15))
    assert store.ids.tolist() == whole.ids.tolist()
    assert store.complete
    assert store.verify() == []
    for key, expected in values(whole).items():
        np.testing.assert_allclose(values(store)[key], expected, rtol=1e-4, atol=1e-5)
        assert values(store)[key][:6].tobytes() == old[key].tobytes()
    # Who had the store open goes on, and no chunk or commit that was there has changed.
    assert {key: x.tobytes() for key, x in values(before).items()} == {key: x.tobytes() for key, x in old.items()}
    now = contents(tmp_path / "run.zarr")
    assert all(now[key] == data for key, data in kept.items() if "/c." in key or key.startswith("commits/0"))


def test_labels_of_appended_samples_join_those_before(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    extract(config, samples=some(0, 3, kind="b", old=True))
    store = extract(config, samples=some(3, 5, kind="a", new=2.5), append=True)
    assert store.labels("kind").column() == ["b", "b", "b", "a", "a"]
    assert store.labels("kind").names == ("b", "a")
    assert store.labels("old").column() == [1, 1, 1, None, None]
    assert store.labels("new").column() == [None, None, None, 2.5, 2.5]


def test_an_append_that_was_cut_off_goes_on(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    extract(config, samples=some(0, 6))
    (tmp_path / "run.zarr").rename(tmp_path / "first.zarr")
    for n in range(1, 6):
        shutil.copytree(tmp_path / "first.zarr", tmp_path / "run.zarr")
        calls = 0

        def stop(*progress: Any, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            extract(config, samples=some(6, 15), append=True, callbacks=[OnProgress(stop)])
        assert len(Store.open(tmp_path / "run.zarr").commits) in (2, 3, 4)
        # Both ways of going on are understood.
        options: dict[str, bool] = {"append": True} if n % 2 else {"resume": True}
        assert extract(config, samples=some(6, 15), **options).complete
        (tmp_path / "run.zarr").rename(tmp_path / f"{n}.zarr")
        assert contents(tmp_path / f"{n}.zarr") == contents(tmp_path / "1.zarr")


def test_each_part_is_resumed_by_its_own_data(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    extract(config, samples=some(0, 6))
    extract(config, samples=some(6, 11), append=True)
    whole = contents(tmp_path / "run.zarr")
    store = Store.open(tmp_path / "run.zarr")
    store.forget([store.ranges[0], store.ranges[2]])
    assert [r.index for r in extract(config, samples=some(0, 6), resume=True).missing] == [2]
    assert extract(config, samples=some(6, 11), resume=True).complete
    assert contents(tmp_path / "run.zarr") == whole


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"capture": {"sites": ["resid_pre"]}}, r"capture sites: \['resid_post'\] there, \['resid_pre'\] now"),
        ({"capture": {"layers": [1]}}, r"capture layers: \[0, 1, 2\] there, \[1\] now"),
        ({"capture": {"dtype": "bfloat16"}}, "dtype: 'float32' there, 'bfloat16' now"),
        ({"capture": {"codec": "zstd"}}, "codec: 'none' there, 'zstd' now"),
        ({"model": {"attention": "eager"}}, "model attention: 'sdpa' there, 'eager' now"),
        ({"data": {"truncate": 5}}, "data truncate: None there, 5 now"),
        ({"run": {"range_size": 5}}, "range_size 4, now it is 5"),
    ],
)
def test_another_model_or_capture_cannot_be_appended(
    sections: dict[str, Any], what: str, llama: Path, tmp_path: Path
) -> None:
    extract(configuration(llama, tmp_path / "run.zarr"), samples=some(0, 3))
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=rf"run\.zarr was made with.*{what}.*append"):
        extract(configuration(llama, tmp_path / "run.zarr", **sections), samples=some(3, 5), append=True)
    assert contents(tmp_path) == before


def test_other_weights_cannot_be_appended(tmp_path: Path) -> None:
    config = configuration(write_model("llama", tmp_path / "model"), tmp_path / "run.zarr")
    extract(config, samples=some(0, 3))
    import transformers as hf

    model = hf.AutoModel.from_pretrained(tmp_path / "model")
    next(iter(model.parameters())).data.add_(1.0)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(StoreError, match="made with another model fingerprint"):
        extract(config, samples=some(3, 5), append=True)


def test_samples_that_are_there_cannot_be_appended(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr")
    extract(config, samples=some(0, 3))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"sample 's2' is in .* already"):
        extract(config, samples=some(2, 5), append=True)
    assert contents(tmp_path) == before


def test_there_must_be_a_store_to_append_to(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store yet"):
        extract(configuration(llama, tmp_path / "run.zarr"), samples=some(0, 3), append=True)


def test_probes_use_all_parts(llama: Path, tmp_path: Path) -> None:
    import sonde

    config = configuration(llama, tmp_path / "run.zarr")
    labelled = [Sample(s.id, prompt=s.prompt, labels={"even": i % 2 == 0}) for i, s in enumerate(text_samples(20))]
    extract(config, samples=labelled[:9])
    store = extract(config, samples=labelled[9:], append=True)
    results = sonde.probe(store, "even", n_draws=10, n_folds=2, test_size=0.4)
    assert set(results.to_pandas()["layer"]) >= {0, 1, 2}
