"""A place in a picture is the token that what is painted there changes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sonde.engine import Sample
from sonde.engine.capture import Capture
from sonde.engine.grid import find_grid, tokens_at
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model
from sonde.errors import InputError

pytestmark = [pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


def encoder(model: Model, *tokens: str) -> Encoder:
    return Encoder(model, Capture.plan(("embed",), tokens, "all", model.n_layers), "raw")


def painted(path: Path, size: tuple[int, int], at: tuple[int, int] | None, side: tuple[int, int]) -> Path:
    """A grey picture of some width and height, with a white patch in one cell of a grid if that is named."""
    picture = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    if at is not None:
        (row, column), (height, width) = at, side
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = 255
    Image.fromarray(picture).save(path)
    return path


def seen(model: Model, encoded: Any) -> Any:
    """What the language model is given of the image, ``[position, hidden]``: the input of its first block."""
    import torch

    kept = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    handle = model.blocks.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            model.module(**encoded.sequence, **encoded.other, use_cache=False)
    finally:
        handle.remove()
    return kept[0]


# Width and height of the picture, and rows and columns of the tokens that the family makes of it.
GRIDS = {
    "llava": ((32, 32), (4, 4)),
    "paligemma": ((32, 32), (4, 4)),
    "qwen2_vl": ((40, 24), (3, 5)),
    "qwen2_5_vl": ((40, 24), (3, 5)),
    "qwen3_vl": ((40, 24), (3, 5)),
    "qwen3_5": ((40, 24), (3, 5)),
    "pixtral": ((32, 16), (2, 4)),
    "mistral3": ((32, 16), (2, 4)),
    "gemma3": ((32, 32), (2, 2)),
    "gemma4": ((40, 24), (6, 10)),
    "internvl": ((32, 32), (2, 2)),
    "idefics3": ((32, 32), (2, 2)),
}


@pytest.mark.parametrize("model_type", GRIDS)
def test_the_token_of_a_place_is_the_one_that_changes_with_it(
    model_type: str,
    load: Callable[[str], Model],
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (size, (rows, columns)) = load(model_type), GRIDS[model_type]
    side = (size[1] // rows, size[0] // columns)
    if model_type == "idefics3":
        monkeypatch.setattr(model.processor.image_processor, "do_image_splitting", False)
    blank = painted(tmp_path / "blank.png", size, None, side)
    first, last = f"image:0,{columns - 1}", f"image:{rows - 1},0"
    names = (first, last, f"image:0,{-columns}", f"image:{-rows},-1", "image:-1,-1")
    encode = encoder(model, *names)
    # A second picture, whose tokens are none of the first one's.
    more = (pictures[1],)
    plain = encode(0, Sample("a", prompt="a star", images=(blank, *more)))
    for name, at in ((first, (0, columns - 1)), (last, (rows - 1, 0)), (names[2], (0, 0))):
        there = painted(tmp_path / "there.png", size, at, side)
        encoded = encode(0, Sample("a", prompt="a star", images=(there, *more)))
        [marked] = encoded.marks[name].nonzero()[:, 0].tolist()
        change = (seen(model, encoded) - seen(model, plain)).abs().sum(dim=1) * plain.image
        assert int(change.argmax()) == marked, (at, change.tolist())
    assert plain.marks[names[3]].equal(plain.marks[first])
    places = [int(plain.marks[name].nonzero()) for name in (names[2], first, last, "image:-1,-1")]
    assert places == sorted(places)
    with pytest.raises(InputError, match=rf"tokens image:{rows},0: its first image has {rows} x {columns} tokens"):
        encoder(model, f"image:{rows},0")(0, Sample("a", prompt="a star", images=(blank,)))


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (7, 2)])
def test_cells_are_those_of_array_split(shape: tuple[int, int]) -> None:
    import torch

    numbers = np.arange(shape[0] * shape[1]).reshape(shape)
    grid = torch.from_numpy(numbers)
    for n_rows, n_columns in ((1, 1), (2, 2), (3, 1), (shape[0], shape[1])):
        for r, of_row in enumerate(np.array_split(numbers, n_rows, axis=0)):
            for c, cell in enumerate(np.array_split(of_row, n_columns, axis=1)):
                for row, column in ((r, c), (r - n_rows, c - n_columns)):
                    got = tokens_at(grid, f"image:{row},{column}:{n_rows}x{n_columns}")
                    assert got.tolist() == cell.flatten().tolist()
    with pytest.raises(InputError, match=f"{shape[0]} x {shape[1]} tokens, fewer than cells"):
        tokens_at(grid, "image:0,0:8x1")


def test_a_cell_of_a_picture_is_marked_whole(load: Callable[[str], Model], tmp_path: Path) -> None:
    picture = painted(tmp_path / "a.png", (32, 32), None, (0, 0))
    tokens = ("image:0,1:2x2", "image:0,2", "image:0,3", "image:1,2", "image:1,3", "image:0,0:1x1")
    encoded = encoder(load("llava"), *tokens)(0, Sample("a", prompt="a star", images=(picture,)))
    cell, *singles, whole = (encoded.marks[name] for name in tokens)
    assert cell.equal(singles[0] | singles[1] | singles[2] | singles[3])
    assert whole.equal(encoded.image)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("kosmos-2", "learned queries"),
        ("blip-2", "learned queries"),
        ("emu", "learned queries"),
        ("llava_next", "tiles of the picture"),
        ("llama4", "tiles of the picture"),
        ("mllama", "from outside of its sequence"),
        ("qwen_vl", "learned queries"),
        ("lavit", "other patches of every picture"),
        ("llama", "it takes text only"),
    ],
)
def test_a_model_without_a_grid_is_refused_before_the_run(
    model_type: str, why: str, load: Callable[[str], Model]
) -> None:
    with pytest.raises(InputError, match=rf"\({model_type}\) has no grid of image tokens, because .*{why}"):
        encoder(load(model_type), "image:0,0")


def test_samples_without_a_grid_are_refused(load: Callable[[str], Model], pictures: list[Path], tmp_path: Path) -> None:
    wide = painted(tmp_path / "wide.png", (64, 32), None, (0, 0))
    for model_type in ("internvl", "idefics3"):
        with pytest.raises(InputError, match="sample 'a': its first image is cut into tiles"):
            encoder(load(model_type), "image:0,0")(0, Sample("a", prompt="a", images=(wide,)))
    with pytest.raises(InputError, match=r"tokens image:0,0:1x2: it has no image positions"):
        encoder(load("llava"), "image:0,0:1x2")(0, Sample("a", prompt="a"))


def test_a_family_whose_layout_is_not_known_is_refused() -> None:
    import torch

    config = SimpleNamespace(model_type="another", vision_config=SimpleNamespace())
    with pytest.raises(InputError, match="how the image tokens of another lie in the picture is not known"):
        find_grid({}, torch.tensor([False, True, True, True, True]), config, 1)
