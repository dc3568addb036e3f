"""A reader of stores made from docs/schema.md alone: nothing of sonde, nothing of Zarr.

Whatever is not as the page says fails an assertion.
"""

import hashlib
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

Array = np.ndarray[Any, Any]
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def unchecked(data: bytes) -> bytes:
    """What an object holds before its checksum, which must be right."""
    content, checksum = data[:-4], data[-4:]
    assert crc32c(content).to_bytes(4, "little") == checksum
    return content


class ThirdParty:
    """An open store; reading a damaged or unfinished part of it fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schema = self.json("zarr.json")["attributes"]["sonde"]
        self.ensure_intact(self.schema)
        if self.schema["version"] == 1:
            part = {"n_samples": self.schema["n_samples"], "fingerprint": self.schema["data"].get("fingerprint", "")}
            digests = [self.schema["samples_sha256"]]
            self.schema |= {"parts": [part], "codec": "none", "samples_sha256": digests}
        self.size = self.schema["range_size"]
        self.ranges: list[tuple[int, int]] = []
        self.rows: list[int] = []
        end = 0
        for part in self.schema["parts"]:
            start, end = end, end + part["n_samples"]
            for first in range(start, end, self.size):
                stop = min(first + self.size, end)
                self.rows += [len(self.ranges) * self.size + i for i in range(stop - first)]
                self.ranges.append((first, stop))
        assert end == self.schema["n_samples"]
        self.arrays = {f"{a['site']}/{a['tokens']}": a for a in self.schema["arrays"]}
        self.commits = {}
        for i, (start, stop) in enumerate(self.ranges):
            if (folder / f"commits/{i:08d}.json").exists():
                self.commits[i] = self.json(f"commits/{i:08d}.json")
                self.ensure_intact(self.commits[i])
                assert self.commits[i]["range"] == {"index": i, "start": start, "stop": stop}

    def json(self, key: str) -> Any:
        return json.loads((self.folder / key).read_bytes())

    def ensure_intact(self, data: dict[str, Any]) -> None:
        stated = data.pop("sha256", None)
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
        assert self.schema["version"] == 1 or hashlib.sha256(canonical).hexdigest() == stated

    def content(self, chunk: dict[str, Any], key: str) -> bytes:
        data = (self.folder / key).read_bytes()
        assert (chunk["key"], chunk["nbytes"], chunk["crc32c"]) == (key, len(data), data[-4:].hex())
        return unchecked(data)

    def values(self, chunk: dict[str, Any], key: str, n_values: int) -> Array:
        data = self.content(chunk, key)
        if self.schema["codec"] == "zstd":
            data = numcodecs.Zstd().decode(data)
        elif self.schema["codec"] == "lz4+bitshuffle":
            data = numcodecs.Blosc().decode(data)
        dtype = self.schema["dtype"]
        assert len(data) == n_values * ITEMSIZE[dtype]
        if dtype == "bfloat16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(np.float32)

    def layer(self, name: str, layer: int) -> Array:
        """float32 ``[sample, hidden]`` of the samples that exist."""
        array = self.arrays[name]
        hidden, n_layers, row = array["hidden"], len(array["layers"]), array["layers"].index(layer)
        parts = []
        for i, commit in self.commits.items():
            mine, folder = commit["arrays"][name], f"activations/{name}"
            x = self.values(mine["chunks"][row], f"{folder}/c.{row}.{i}.0", self.size * hidden).reshape(-1, hidden)
            if "scale" in mine:
                scale = np.frombuffer(self.content(mine["scale"], f"{folder}_scale/c.0.{i}"), "<f4")
                x = x * scale.reshape(n_layers, self.size)[row, :, None]
            start, stop = self.ranges[i]
            parts.append(x[: stop - start])
        return np.concatenate(parts)

    def tokens(self, name: str, layer: int) -> Iterator[tuple[Array, list[int], list[str]]]:
        """(float32 ``[token, hidden]``, token ids, modalities) of every sample that exists."""
        array = self.arrays[name]
        hidden, n_layers, row = array["hidden"], len(array["layers"]), array["layers"].index(layer)
        for i, commit in self.commits.items():
            mine, folder = commit["arrays"][name], f"activations/{name}/{i:08d}"
            names = self.json(f"{folder}/zarr.json")["attributes"]["modality"]
            n, size = mine["tokens"]["n_tokens"], mine["tokens"]["chunk_tokens"]
            of_layer = -(-n // size)
            x = np.empty((0, hidden), np.float32)
            for k in range(of_layer):
                chunk = mine["chunks"][row * of_layer + k]
                values = self.values(chunk, f"{folder}/values/c.{row}.{k}.0", size * hidden)
                x = np.concatenate([x, values.reshape(-1, hidden)])
            x = x[:n]
            if "scale" in mine:
                scale = np.frombuffer(self.content(mine["scale"], f"{folder}/scale/c.0.0"), "<f4")
                x = x * scale.reshape(n_layers, n)[row, :, None]
            offsets, ids, kinds = (
                np.frombuffer(self.content(mine["tokens"][part], f"{folder}/{part}/c.0"), dtype).tolist()
                for part, dtype in (("offsets", "<i8"), ("token_ids", "<i4"), ("modality", "u1"))
            )
            assert offsets[0] == 0
            assert offsets[-1] == n == len(ids) == len(kinds)
            for a, b in itertools.pairwise(offsets):
                yield x[a:b], ids[a:b], [names[kind] for kind in kinds[a:b]]

    def texts(self, key: str) -> list[str]:
        """All texts of a text array, rows of padding too."""
        array = self.json(f"{key}/zarr.json")
        [n], [size] = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
        texts: list[str] = []
        for k in range(-(-n // size)):
            data = (self.folder / key / f"c/{k}").read_bytes()
            for codec in reversed(array["codecs"][1:]):
                data = unchecked(data) if codec["name"] == "crc32c" else numcodecs.Zstd().decode(data)
            [count], at = struct.unpack_from("<I", data), 4
            for _ in range(count):
                [length] = struct.unpack_from("<I", data, at)
                texts.append(data[at + 4 : at + 4 + length].decode())
                at += 4 + length
        return texts[:n]

    def columns(self) -> dict[str, list[str]]:
        names = [path.parent.name for path in self.folder.glob("samples/*/zarr.json")]
        columns = {}
        for name in sorted(names):
            padded = self.texts(f"samples/{name}")
            columns[name] = [padded[row] for row in self.rows]
        digests, end = [], 0
        for part in self.schema["parts"]:
            start, end = end, end + part["n_samples"]
            texts = [text.encode() for name in columns for text in (name, *columns[name][start:end])]
            digests.append(hashlib.sha256(b"".join(struct.pack("<Q", len(t)) + t for t in texts)).hexdigest())
        assert digests == self.schema["samples_sha256"]
        return columns

    def labels(self, name: str) -> tuple[str, list[str], Array]:
        group = self.json(f"labels/{name}/zarr.json")["attributes"]
        key = f"labels/{name}/{group.get('values', 'values')}"
        kind, names = group["kind"], group["names"]
        dtype = {"binary": "<i1", "multiclass": "<i4", "multilabel": "<i1", "regression": "<f8"}[kind]
        shape = self.json(f"{key}/zarr.json")["shape"]
        data = unchecked((self.folder / key / "/".join("c" + "0" * len(shape))).read_bytes())
        head = json.dumps({"kind": kind, "names": names, "shape": shape}, sort_keys=True, separators=(",", ":"))
        if self.schema["version"] > 1:
            assert hashlib.sha256(head.encode() + data).hexdigest() == group["sha256"]
        values = np.frombuffer(data, dtype).reshape(shape)
        return kind, names, values[[row for row in self.rows if row < len(values)]]
