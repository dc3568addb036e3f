"""A tiny text model, a manifest and the store that comes of them; the command line in this process and in its own."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sonde

TOPICS = {"animal": ["cat", "dog", "horse", "owl", "bee"], "tool": ["saw", "hammer", "drill", "axe", "plane"]}
N_SAMPLES, RANGE_SIZE, N_LAYERS, HIDDEN = 192, 4, 3, 32

CONFIG = """
[model]
name = "{model}"
[data]
manifest = "{manifest}"
[capture]
tokens = ["last", "mean"]
[run]
out = "run.zarr"
range_size = {range_size}
"""


@dataclass(frozen=True, slots=True)
class Study:
    """A model, a manifest, a configuration whose store is the relative ``run.zarr``, and a finished store."""

    model: Path
    manifest: Path
    config: Path
    store: Path


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


def write_model(folder: Path, n_layers: int = N_LAYERS, more_words: Iterable[str] = ()) -> Path:
    """Save a small Llama with random weights and a tokenizer of one token per word."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    topics = (word for topic in TOPICS.values() for word in topic)
    words = list(dict.fromkeys(["<unk>", "<pad>", "the", *topics, *more_words]))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": n_layers, "num_attention_heads": 2}
    no_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.LlamaModel(hf.LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes, **no_ids))
    model.save_pretrained(folder)
    return folder


def write_manifest(path: Path) -> Path:
    """Write samples of 2 to 30 words, two of a group, labelled with a topic, the share of "the" and a constant."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(N_SAMPLES):
            topic = draw.choice(sorted(TOPICS))
            words = [draw.choice(["the", *TOPICS[topic]]) for _ in range(draw.randint(1, 29))]
            words.append(draw.choice(TOPICS[topic]))
            labels = {"topic": topic, "share": words.count("the") / len(words), "constant": "same"}
            row = {"id": f"s{i}", "prompt": " ".join(words), "group": f"g{i // 2}"}
            file.write(json.dumps(row | labels) + "\n")
    return path


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study whose store must not be written to; `store` is a copy."""
    folder = tmp_path_factory.mktemp("study")
    model, manifest = write_model(folder / "model"), write_manifest(folder / "samples.jsonl")
    config = folder / "extract.toml"
    config.write_text(CONFIG.format(model=model, manifest=manifest, range_size=RANGE_SIZE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sonde.extract(config)
    return Study(model, manifest, config, folder / "run.zarr")


@pytest.fixture
def store(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study's store in the working directory."""
    monkeypatch.chdir(tmp_path)
    ignore = shutil.ignore_patterns("statistics")  # of other tests' probes
    return Path(shutil.copytree(study.store, tmp_path / "run.zarr", ignore=ignore))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs one command in this process."""
    from sonde.cli import run

    def command(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return command


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts one command in a process of its own, with Ctrl-C as at a terminal even where this one ignores it."""
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('sonde', run_name='__main__')"
    )

    def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(Path(sonde.__file__).parents[1]), "COLUMNS": "200"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=environment, **pipes | options)

    return process


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file below a store, but the logs of its runs and what probes keep there."""

    def read(folder: Path) -> dict[str, bytes]:
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        passed_over = ("log/", "statistics/")
        return {name: path.read_bytes() for name, path in files.items() if not name.startswith(passed_over)}

    return read
