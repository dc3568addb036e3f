import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonde.engine.manifest import read_manifest
from sonde.engine.sample import Sample
from sonde.errors import InputError

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
ROWS: list[dict[str, Any]] = [
    {
        "id": "007",
        "prompt": 'a, "b"\nc',
        "messages": None,
        "images": ["x/a.png", "b.png"],
        "group": "g",
        "split": "test",
        "kind": "cat",
        "n": 3,
        "w": 0.5,
        "ok": True,
        "tags": ["red", "round"],
    },
    {
        "id": "8",
        "prompt": None,
        "messages": CHAT,
        "images": ["b.png"],
        "group": None,
        "split": None,
        "kind": None,
        "n": None,
        "w": 2.0,
        "ok": False,
        "tags": [],
    },
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def as_jsonl(folder: Path) -> Path:
    return write(folder / "m.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def as_csv(folder: Path) -> Path:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = json.dumps(value) if isinstance(value, list | bool) else str(value)
        return '"' + text.replace('"', '""') + '"'

    lines = [",".join(ROWS[0]), *(",".join(cell(value) for value in row.values()) for row in ROWS)]
    return write(folder / "m.csv", "\ufeff" + "\r\n".join(lines) + "\r\n")


def as_parquet(folder: Path) -> Path:
    # In a folder whose name looks like a partition, which must not become a column.
    folder = folder / "part=1"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "m.parquet")
    return folder / "m.parquet"


@pytest.mark.parametrize("make", [as_jsonl, as_csv, as_parquet])
def test_every_kind_of_file_says_the_same(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    here = path.parent
    assert list(read_manifest(path).samples) == [
        Sample(
            "007",
            prompt='a, "b"\nc',
            images=(here / "x/a.png", here / "b.png"),
            group="g",
            split="test",
            labels={"kind": "cat", "n": 3, "w": 0.5, "ok": True, "tags": ("red", "round")},
        ),
        Sample(
            "8",
            messages=tuple(CHAT),
            images=(here / "b.png",),
            labels={"kind": None, "n": None, "w": 2.0, "ok": False, "tags": ()},
        ),
    ]
    assert [type(value) for value in read_manifest(path).column("ok")] == [bool, bool]
    assert [type(value) for value in read_manifest(path).column("w")] == [float, float]


def test_a_manifest_has_one_fingerprint_in_every_form_and_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    prints = {read_manifest(make(tmp_path)).fingerprint() for make in (as_jsonl, as_csv, as_parquet)}
    prints.add(read_manifest(as_csv(tmp_path / "elsewhere")).fingerprint())
    assert len(prints) == 1


def test_image_paths_may_be_absolute_or_one_in_a_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "id,prompt,image\n1,x,a.png\n2,x,/data/b.png\n3,x,\n4,,c.png\n")
    samples = read_manifest(path).samples
    assert [sample.images for sample in samples] == [
        (tmp_path / "a.png",),
        (Path("/data/b.png"),),
        (),
        (tmp_path / "c.png",),
    ]
    assert samples[3].prompt == ""
    path = write(tmp_path / "n.csv", "id,prompt,images\n1,x,a [1].png\n")
    assert read_manifest(path).samples[0].images == (tmp_path / "a [1].png",)


def test_relative_manifests_keep_working_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m.csv", "id,prompt,image\n1,x,a.png\n")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("m.csv").samples[0].images == (tmp_path / "a.png",)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", ""], [1, -2, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["007", "8"], ["007", "8"]),
        (["1", "x"], ["1", "x"]),
        (["True", "false"], [True, False]),
        (["nan", "1.0"], ["nan", "1.0"]),
        (["1_000"], ["1_000"]),
        (["", ""], [None, None]),
        (['"[""a""]"', "[]"], [("a",), ()]),
        (['"[""a""]"', "[not json"], ['["a"]', "[not json"]),
    ],
)
def test_a_csv_label_column_is_of_the_narrowest_type_that_holds(tmp_path: Path, cells: list[str], values: Any) -> None:
    rows = "".join(f"{i},x,{cell}\n" for i, cell in enumerate(cells))
    column = read_manifest(write(tmp_path / "m.csv", "id,prompt,y\n" + rows)).column("y")
    assert column == values
    assert [type(value) for value in column] == [type(value) for value in values]


def test_integer_ids_become_text_and_nan_becomes_none(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"id": 7, "prompt": "x", "group": 3, "y": NaN}\n')
    sample = read_manifest(path).samples[0]
    assert (sample.id, sample.group, sample.labels) == ("7", "3", {"y": None})


def test_json_strings_may_hold_line_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "m.ndjson", json.dumps({"id": "a", "prompt": "u\u2028v\x85w"}, ensure_ascii=False) + "\n")
    assert read_manifest(path).samples[0].prompt == "u\u2028v\x85w"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.jsonl", "", "no samples in"),
        ("m.csv", "id,prompt\n", "no samples in"),
        ("m.csv", "", "no samples in"),
        ("m.txt", "x", "unknown kind: give a .jsonl, .ndjson, .csv or .parquet"),
        ("m.csv", "name,prompt\n1,x\n", "no column 'id': it has 'name', 'prompt'"),
        ("m.csv", "id,text\n1,x\n", "no column 'prompt' or 'messages': it has 'id', 'text'"),
        ("m.csv", "id,prompt\n1,x\n2,y,z\n", r"m\.csv:3: 3 cells for 2 columns"),
        ("m.csv", "id,prompt,y,y\n1,x,2,3\n", r"m\.csv:1: .*repeated name"),
        ("m.csv", ",id,prompt\n0,1,x\n", r"m\.csv:1: .*empty"),
        ("m.csv", 'id,prompt\n1,"x\n', r"m\.csv:\d+: not CSV"),
        ("m.csv", "id,prompt\n,x\n", r"m\.csv:2: the id of a sample is empty"),
        ("m.csv", "id,prompt,messages\n1,x,[\n", r"m\.csv:2: messages is not JSON"),
        ("m.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "b",\n', r"m\.jsonl:2: not JSON"),
        ("m.jsonl", '\n["a"]\n', r"m\.jsonl:2: a list, not an object"),
        ("m.jsonl", '{"id": "a", "prompt": "x"}\n{"prompt": "x"}\n', r"m\.jsonl:2: the id of a sample is empty"),
        ("m.jsonl", '{"id": 1.5, "prompt": "x"}\n', r"m\.jsonl:1: id 1.5 is a float"),
        ("m.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', "'a' is given to more than one"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "y": {"z": 1}}\n', r"m\.jsonl:1: label 'y' is a dict"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "y": [["z"]]}\n', r"m\.jsonl:1: label 'y' is a list of more"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "image": "https://x.org/a.png"}\n', r"m\.jsonl:1: .* is a URL"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "images": ["a.png", "HTTP://x.org/a"]}\n', "is a URL"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "image": "a", "images": ["a"]}\n', "both image and images"),
        ("m.jsonl", '{"id": "a", "prompt": "x", "images": [3]}\n', "image 3 is no path"),
        (
            "m.jsonl",
            '{"id": "a", "messages": [{"role": "user", "content": [{"type": "image", "url": "http://x"}]}]}\n',
            "is a URL",
        ),
        (
            "m.jsonl",
            '{"id": "a", "messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}]}\n',
            "names its own file",
        ),
        ("m.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_bad_manifests_are_refused_with_their_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_manifest(write(tmp_path / name, text))


def test_a_missing_manifest_and_a_bad_parquet_row_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_manifest(tmp_path / "m.csv")
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"m\.parquet: row 2: sample 'b' has an empty prompt"):
        read_manifest(tmp_path / "m.parquet")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for name in ("m.csv", "m.jsonl"):
        (tmp_path / name).write_bytes(b"id,prompt\n1,\xff\n")
        with pytest.raises(InputError, match=rf"{name}:\d"):
            read_manifest(tmp_path / name)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet as a structure", "parquet as a map"])
def test_spans_are_read_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    ids, prompts = ["0", "1", "2"], ["a red car", "a bus", "a bike"]
    spans: list[dict[str, Any] | None] = [{"colour": [2, 5], "thing": [6, 9]}, {"thing": [2, 5]}, None]
    if kind == "jsonl":
        spans[1] = {"thing": "bus"}
        rows = [dict(zip(("id", "prompt", "spans"), row, strict=True)) for row in zip(ids, prompts, spans, strict=True)]
        path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        cells = ["" if span is None else json.dumps(span).replace('"', '""') for span in spans]
        lines = [f'{i},{prompt},"{cell}"' for i, prompt, cell in zip(ids, prompts, cells, strict=True)]
        path = write(tmp_path / "m.csv", "\n".join(["id,prompt,spans", *lines]))
    else:
        place = pa.list_(pa.int64())
        as_map = pa.map_(pa.string(), place)
        column = pa.array(
            [None if span is None else list(span.items()) for span in spans] if "map" in kind else spans,
            as_map if "map" in kind else pa.struct([("colour", place), ("thing", place)]),
        )
        path = tmp_path / "m.parquet"
        pq.write_table(pa.table({"id": ids, "prompt": prompts, "spans": column}), path)
    data = read_manifest(path)
    assert [sample.spans for sample in data.samples] == [{"colour": (2, 5), "thing": (6, 9)}, {"thing": (2, 5)}, {}]
    assert data.labels == ()


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ("[2, 5]", "spans is a list: give a mapping"),
        ('{"x": [0, 99]}', "span 'x' is characters 0 to 99, but the prompt has 9"),
        ('"red"', "spans is not JSON .*give a JSON mapping"),
    ],
)
def test_spans_that_are_none_are_refused_with_their_line(tmp_path: Path, spans: str, said: str) -> None:
    path = write(tmp_path / "m.jsonl", f'{{"id": "a", "prompt": "a red car", "spans": {spans}}}')
    with pytest.raises(InputError, match=rf"m\.jsonl:1: .*{said}"):
        read_manifest(path)
