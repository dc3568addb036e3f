"""Libraries that keep a model's activations, each as its documentation has it, in an interpreter of its own.

Importing them changes settings of Python and of torch, and SAELens 6 and TransformerLens 4 cannot be installed
together: so each runs in a process, which loads it, is told when to run, and answers when all is on the disk. Nothing
of sonde is imported here.

All are given the token ids of the prompts and keep the residual stream behind every block at the last token; what they
give back for the comparison is read from what they wrote. Those that take batches (`Batched`) get them in the order of
the data, under the token budget, padded on the right with a mask; ``torch.save`` and an fsync for each batch. The model
is loaded before the clock starts, its head is cut off where the library lets it, and nothing has gradients.

    python -m benchmarks.extract_peers NAME JOB.json
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .peer_process import answering, serve


class Peer(ABC):
    """One way of keeping the last token of all layers.

    Parameters
    ----------
    job
        ``model``, a folder; ``ids``, the prompts' token ids; ``token_budget``; ``dtype`` and ``threads`` of torch; and
        ``folder``, where to write.

    Attributes
    ----------
    package, module
        Distribution to install, and what is imported of it.
    """

    package: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.model_folder: str = job["model"]
        self.ids: list[list[int]] = job["ids"]
        self.token_budget: int = job["token_budget"]
        self.dtype: str = job["dtype"]
        self.folder = Path(job["folder"])

    def prepare(self) -> None:
        """Make room for the next run; not timed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @abstractmethod
    def run(self) -> None:
        """Run all prompts, and have what is kept on the disk."""

    @abstractmethod
    def values(self) -> NDArray[np.float32]:
        """Return what the last run wrote: ``[layer, sample, hidden]``, the first layers or all."""


class Batched(Peer):
    """What is given a batch at a time."""

    def batches(self) -> Iterator[tuple[Any, Any, Any]]:
        """Token ids and mask, int64 ``[batch, position]``, and the index of the last tokens in them."""
        import torch

        groups: list[list[list[int]]] = [[]]
        for ids in self.ids:
            longest = max(map(len, [*groups[-1], ids]))
            if groups[-1] and longest * (len(groups[-1]) + 1) > self.token_budget:
                groups.append([])
            groups[-1].append(ids)
        for group in groups:
            lengths = torch.tensor([len(ids) for ids in group])
            padded = torch.zeros(len(group), int(lengths.max()), dtype=torch.long)
            for row, ids in zip(padded, group, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
            yield padded, mask.long(), (torch.arange(len(group)), lengths - 1)

    @abstractmethod
    def states(self, ids: Any, mask: Any, last: Any) -> Any:
        """Return ``[layer, batch, hidden]``."""

    def run(self) -> None:
        import torch

        with torch.inference_mode():
            for number, batch in enumerate(self.batches()):
                with (self.folder / f"{number:05d}.pt").open("wb") as file:
                    torch.save(self.states(*batch), file)
                    file.flush()
                    os.fsync(file.fileno())

    def values(self) -> NDArray[np.float32]:
        import torch

        parts = [torch.load(path, weights_only=True) for path in sorted(self.folder.glob("*.pt"))]
        return np.asarray(torch.cat(parts, dim=1).float().numpy())


class PlainLoop(Batched):
    """The field's own loop. Its last state is behind the final norm, so the last layer's is left out of the values."""

    package = module = "transformers"

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(job)
        self.model = load_base(self.model_folder, self.dtype)

    def states(self, ids: Any, mask: Any, last: Any) -> Any:
        import torch

        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        return torch.stack([state[last] for state in output.hidden_states])

    def values(self) -> NDArray[np.float32]:
        return super().values()[1:-1]


class Nnsight(Batched):
    """The model without its head, wrapped; one trace reads the output of every block."""

    package = module = "nnsight"

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(job)
        nnsight = library("nnsight")
        self.save = nnsight.save
        self.model = nnsight.NNsight(load_base(self.model_folder, self.dtype))

    def states(self, ids: Any, mask: Any, last: Any) -> Any:
        import torch

        model, save = self.model, self.save
        with model.trace(input_ids=ids, attention_mask=mask, use_cache=False):
            kept = save([block.output[last] for block in model.h])
        return torch.stack(kept)


class TransformerLens(Batched):
    """A bridge over the unprocessed weights; the head, which it does not leave out, sees one position."""

    package, module = "transformer-lens", "transformer_lens"

    def __init__(self, job: Mapping[str, Any]) -> None:
        import torch
        import transformers

        super().__init__(job)
        bridge = library("transformer_lens.model_bridge").TransformerBridge
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.model_folder)
        dtype = getattr(torch, self.dtype)
        self.model = bridge.boot_transformers(self.model_folder, device="cpu", dtype=dtype, tokenizer=tokenizer)
        self.names = [f"blocks.{layer}.hook_resid_post" for layer in range(self.model.cfg.n_layers)]

    def states(self, ids: Any, mask: Any, last: Any) -> Any:
        import torch

        options = {"attention_mask": mask, "use_cache": False, "logits_to_keep": 1, "return_type": None}
        _, cache = self.model.run_with_cache(ids, names_filter=self.names, **options)
        return torch.stack([cache[name][last] for name in self.names])


class SAELens(Peer):
    """Its runner keeps one hook in one pass over contexts of equal length, so there is a pass for every layer.

    Of its model classes the one that loads a folder is `AutoModelForCausalLM`, which runs to the head whatever the
    hook. The model is loaded once for all passes, not for each as the runner would. All contexts are one buffer.
    """

    package, module = "sae-lens", "sae_lens"

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(job)
        self.runners = library("sae_lens.cache_activations_runner")
        load = self.runners.load_model
        self.model = load("AutoModelForCausalLM", job["model"], "cpu", {"dtype": self.dtype})
        self.runners.load_model = lambda **options: self.model
        self.data = library("datasets").Dataset.from_dict({"input_ids": self.ids})
        self.config = self.model.model.config
        self.hooks = [f"transformer.h.{layer}" for layer in range(self.config.num_hidden_layers)]
        self.ready: list[Any] = []

    def prepare(self) -> None:
        super().prepare()
        self.ready = [self._runner(hook) for hook in self.hooks]

    def _runner(self, hook: str) -> Any:
        n, length = len(self.ids), len(self.ids[0])
        batch = min(n, self.token_budget // length)
        settings = self.runners.CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=self.model_folder,
            model_class_name="AutoModelForCausalLM",
            model_batch_size=batch,
            hook_name=hook,
            d_in=self.config.hidden_size,
            context_size=length,
            # Counted behind the slice, which leaves one token of each context.
            training_tokens=n,
            seqpos_slice=(-1, None),
            # It rounds down to whole batches, and floating point may be a little short.
            buffer_size_gb=(n * self.config.hidden_size * 4 + 1) / 1e9,
            new_cached_activations_path=str(self.folder / hook),
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            dtype=self.dtype,
            device="cpu",
        )
        assert n % batch == 0, f"{n} contexts of {length} tokens are no whole number of batches of {batch}"
        return self.runners.CacheActivationsRunner(settings, override_dataset=self.data)

    def run(self) -> None:
        for runner in self.ready:
            runner.run()
        for path in self.folder.rglob("*"):
            place = os.open(path, os.O_RDONLY)
            os.fsync(place)
            os.close(place)

    def values(self) -> NDArray[np.float32]:
        load = library("datasets").load_from_disk
        kept = [load(str(self.folder / hook)).with_format("numpy")[hook][:] for hook in self.hooks]
        return np.stack(kept)[:, :, 0].astype(np.float32)


PEERS: dict[str, type[Peer]] = {
    "plain loop": PlainLoop,
    "nnsight": Nnsight,
    "TransformerLens": TransformerLens,
    "SAELens": SAELens,
}


def library(name: str) -> Any:
    """Import what need not be installed."""
    return importlib.import_module(name)


def load_base(folder: str, dtype: str) -> Any:
    """Load a model without its head."""
    import torch
    import transformers

    return transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().requires_grad_(False)


def main(name: str, job: Mapping[str, Any]) -> None:
    """Load a peer, then do what is said on stdin; every line is answered by a line of JSON."""
    answer = answering()
    kind = PEERS[name]
    if importlib.util.find_spec(kind.module) is None:
        answer({"absent": "not installed"})
        return
    try:
        importlib.import_module(kind.module)
    except ImportError as error:
        answer({"absent": f"cannot be imported: {error}"})
        return
    import torch

    torch.set_num_threads(job["threads"])
    peer = kind(job)
    answer({"versions": {name: importlib.metadata.version(name) for name in (kind.package, "torch", "transformers")}})
    serve(peer, answer)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
