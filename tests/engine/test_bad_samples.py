"""A sample that cannot be used fails the run by name, or is passed over and leaves its neighbours as they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.callbacks import OnProgress
from sonde.engine import Sample, extract
from sonde.errors import InputError
from sonde.store import Store

from .runs import configuration, contents, prompt, text_samples, values

BAD = 5


@dataclass(frozen=True)
class Case:
    model_type: str
    reason: str
    fields: dict[str, Any] = field(default_factory=dict)
    capture: dict[str, Any] = field(default_factory=dict)


CASES = {
    "missing image": Case("llava", "there is no image .*none.png", {"prompt": "a", "images": ["none.png"]}),
    "no image": Case("llava", "the image .*garbage.png cannot be read", {"prompt": "a", "images": ["garbage.png"]}),
    "half an image": Case("llava", "the image .*half.png cannot be read", {"prompt": "a", "images": ["half.png"]}),
    "a folder": Case("llava", "the image .*folder.png cannot be read", {"prompt": "a", "images": ["folder.png"]}),
    "image for text": Case(
        "llama", "has an image, but the model takes text only", {"prompt": "a", "images": ["0.png"]}
    ),
    "two images for one": Case(
        "kosmos-2", "has 2 images, but the model takes one", {"prompt": "a", "images": ["0.png", "0.png"]}
    ),
    "places for no image": Case("llava", "prompt has 2 of <image> for 0 images", {"prompt": "<image> a <image>"}),
    "too long": Case(
        "llama", "257 tokens, but the model has positions for 256; shorten it", {"prompt": "a" + " a" * 255}
    ),
    "no template": Case(
        "llama", "has messages, but the model has no chat template", {"messages": ({"role": "user", "content": "a"},)}
    ),
    "no image to average": Case(
        "llava", "image_mean: it has no image positions", {"prompt": "a"}, {"tokens": ["image_mean"]}
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def images(tmp_path: Path, pictures: list[Path]) -> Path:
    """A folder of one good picture and several bad ones."""
    good = pictures[0].read_bytes()
    (tmp_path / "0.png").write_bytes(good)
    (tmp_path / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\n but no picture")
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def dataset(case: Case, folder: Path) -> list[Sample]:
    """Ten good samples, of which the sixth is replaced."""
    needs_image = case.capture.get("tokens") == ["image_mean"]
    samples = text_samples(10, images=(folder / "0.png",) if needs_image else ())
    fields = case.fields | {"images": tuple(folder / name for name in case.fields.get("images", ()))}
    samples[BAD] = Sample("bad", **fields)
    return samples


def run(case: Case, folder: Path, out: Path, samples: list[Sample], on_error: str) -> Store:
    config = configuration(folder, out, capture=case.capture, data={"prompt_format": "raw"}, run={"on_error": on_error})
    return extract(config, samples=samples)


@every_case
def test_a_bad_sample_fails_the_run_by_name(case: Case, model_folder: Callable[[str], Path], images: Path) -> None:
    folder = model_folder(case.model_type)
    with pytest.raises(InputError, match=f"sample 'bad': .*{case.reason}"):
        run(case, folder, images / "run.zarr", dataset(case, images), "fail")
    left = Store.open(images / "run.zarr")
    assert [r.index for r in left.missing] == [1, 2], "what came before it is committed"
    assert left.skipped == {}


@every_case
def test_a_bad_sample_that_is_passed_over_is_recorded_and_leaves_the_others_alone(
    case: Case, model_folder: Callable[[str], Path], images: Path
) -> None:
    folder = model_folder(case.model_type)
    samples = dataset(case, images)
    store = run(case, folder, images / "run.zarr", samples, "skip")
    assert store.complete
    assert list(store.skipped) == [BAD]
    assert store.skipped[BAD].startswith("sample 'bad': ")
    assert store.valid.tolist() == [row != BAD for row in range(10)]
    good = [sample for row, sample in enumerate(samples) if row != BAD]
    alone = values(run(case, folder, images / "good.zarr", good, "fail"))
    for key, got in values(store).items():
        assert np.isnan(got[BAD]).all()
        want = np.insert(alone[key], BAD, np.nan, axis=0)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.nanmax(np.abs(want)))


def test_a_run_goes_on_when_the_bad_sample_is_mended(
    model_folder: Callable[[str], Path], images: Path, pictures: list[Path]
) -> None:
    case = CASES["missing image"]
    folder, out, samples = model_folder("llava"), images / "run.zarr", dataset(case, images)
    with pytest.raises(InputError, match="sample 'bad'"):
        run(case, folder, out, samples, "fail")
    (images / "none.png").write_bytes(pictures[0].read_bytes())
    config = configuration(folder, out, data={"prompt_format": "raw"}, run={"on_error": "fail"})
    resumed = contents(extract(config, samples=samples, resume=True).location.root)
    out.rename(images / "mended.zarr")
    run(case, folder, out, samples, "fail")
    assert resumed == contents(out)


@pytest.mark.parametrize("bad", [range(4, 8), range(10)], ids=["a range", "all"])
def test_a_range_of_nothing_but_bad_samples_is_committed(
    bad: range, model_folder: Callable[[str], Path], images: Path
) -> None:
    samples = text_samples(10)
    for row in bad:
        samples[row] = Sample(f"bad{row}", prompt=prompt(0, 2), images=(images / "none.png",))
    done = []
    config = configuration(model_folder("llava"), images / "run.zarr", run={"on_error": "skip"})
    store = extract(config, samples=samples, callbacks=[OnProgress(lambda n, _, m: done.append((n, m["skipped"])))])
    assert store.complete
    assert list(store.skipped) == list(bad)
    assert all("there is no image" in why for why in store.skipped.values())
    assert done[-1] == (10, len(bad))
    for got in values(store).values():
        assert np.isnan(got).all(axis=1).tolist() == [row in bad for row in range(10)]
