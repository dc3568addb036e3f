"""What the benchmark of vLLM runs side by side, each with an engine or a model of its own in a process of its own.

python -m benchmarks.vllm_peers NAME JOB.json
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .peer_process import answering, serve

SONDE, PLAIN, EXAMPLE, TRANSFORMERS = "sonde, vLLM", "vLLM alone", "vLLM's connector", "sonde, transformers"


class Peer(ABC):
    """One way of running all prompts.

    Parameters
    ----------
    job
        ``model``, a folder; ``prompts``; ``ids``, their token ids; ``token_budget`` of a step; ``memory``, the share of
        a GPU that each engine takes; and ``folder``, where to write.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.folder = Path(job["folder"])

    def prepare(self) -> None:
        """Make room for the next run; not timed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @abstractmethod
    def run(self) -> None:
        """Run all prompts, and have what is kept on the disk."""

    def values(self) -> NDArray[np.float32]:
        """Return what the last run wrote of the last token, ``[layer, sample, hidden]``; nothing, if it keeps none."""
        return np.zeros((0, 0, 0), np.float32)


class Sonde(Peer):
    """A whole extraction by either backend, from prompts to committed ranges."""

    backend = "vllm"

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(job)
        from sonde.engine import ExtractConfig, Sample
        from sonde.engine.session import Session

        from .extract_engine import Extraction

        model = {"name": job["model"], "backend": self.backend}
        memory = {"memory": job["memory"]} if self.backend == "vllm" else {}
        run = {"out": self.folder / "unused", "token_budget": job["token_budget"]}
        capture = {"tokens": ["last", "mean"]}
        config = ExtractConfig.load({"model": model | memory, "capture": capture, "run": run})
        session = Session.open(config)
        session.start(job["token_budget"])
        samples = [Sample(str(i), prompt=prompt) for i, prompt in enumerate(job["prompts"])]
        self._extraction = Extraction(session, config, samples, self.folder)
        self._store: Any = None

    def run(self) -> None:
        self._store = self._extraction.whole()

    def values(self) -> NDArray[np.float32]:
        from sonde.store import as_float32

        (array,) = (array for array in self._store.arrays if array.tokens == "last")
        layers = [self._store.layer("resid_post", "last", layer).numpy() for layer in array.layers]
        return np.stack([as_float32(values) for values in layers])


class SondeTransformers(Sonde):
    """The same by the other backend."""

    backend = "transformers"


class Plain(Peer):
    """vLLM as it runs best, all prompts given at once: nothing is kept but the token that each prompt ends in."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(job)
        # By itself it would leave one of few cores to its front end, and be half as fast on two.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM, SamplingParams

        self._llm = LLM(**self.arguments())
        self._sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
        self._prompts: Any = [{"prompt_token_ids": ids} for ids in job["ids"]]

    def arguments(self) -> dict[str, Any]:
        """Of the engine: those of sonde's that bear on speed, and none that vLLM would not have by itself."""
        from vllm.platforms import current_platform

        from sonde.engine.vllm.settings import step_arguments

        on_cpu = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}
        return {
            "model": self.job["model"],
            "dtype": "bfloat16",
            # The same prompts come in every round.
            "enable_prefix_caching": False,
            **step_arguments(self.job["token_budget"]),
            **(on_cpu if current_platform.is_cpu() else {"gpu_memory_utilization": self.job["memory"]}),
        }

    def run(self) -> None:
        self._llm.generate(self._prompts, self._sampling, use_tqdm=False)


class Example(Plain):
    """vLLM's example: all layers and tokens of every prompt to a file of its own, not waited for on the disk."""

    def arguments(self) -> dict[str, Any]:
        layers = json.loads((Path(self.job["model"]) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        hf_config = {"eagle_aux_hidden_state_layer_ids": list(range(1, layers + 1))}
        return super().arguments() | {
            "speculative_config": {
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": hf_config},
            },
            "kv_transfer_config": {
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": str(self.folder)},
            },
        }


KINDS: Mapping[str, type[Peer]] = {SONDE: Sonde, PLAIN: Plain, EXAMPLE: Example, TRANSFORMERS: SondeTransformers}


def why_absent(name: str) -> str:
    """Why a peer cannot run here; empty if it can."""
    if name == TRANSFORMERS:
        return ""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if name == EXAMPLE:
        import torch

        return "" if torch.cuda.is_available() else "it pins memory, for which it needs CUDA"
    return ""


def main(name: str, job: Mapping[str, Any]) -> None:
    """Load, and do as stdin says."""
    answer = answering()
    absent = why_absent(name)
    if absent:
        answer({"absent": absent})
        return
    peer = KINDS[name](job)
    packages = ("torch", "transformers", *(("vllm",) if name != TRANSFORMERS else ()))
    answer({"versions": {package: _version(package) for package in packages}})
    serve(peer, answer)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # The build for CPUs has another name.
        return importlib.metadata.version(f"{package}-cpu")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
