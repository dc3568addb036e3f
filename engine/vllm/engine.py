"""vLLM's engine: one in a process, made when it is needed and ended with everything that it has changed there."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any

from sonde.errors import ModelError

from .desk import Desk
from .prompts import RequestBatch


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """What vLLM says of a model before it is loaded.

    Attributes
    ----------
    hidden_size
        Length of the stream's vectors.
    max_length
        Most tokens of a prompt: one less than positions, as vLLM goes on to speak one.
    takes_images
        Whether it has a vision side there.
    config
        vLLM's, of the engine.
    """

    hidden_size: int
    max_length: int
    takes_images: bool
    config: Any


def describe(arguments: dict[str, Any], name: str) -> Description:
    """Have vLLM check how it is set up, without loading the model.

    Raises
    ------
    ModelError
        If vLLM does not have the model, or cannot give its states.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_eagle3

    try:
        config = _configure(arguments)
        model = config.model_config
        found, architecture = ModelRegistry.resolve_model_cls(model.architectures, model)
    except Exception as error:
        raise ModelError(
            f'vLLM cannot run the model {name!r}: {_reason(error)}; run it with backend = "transformers"'
        ) from error
    if not supports_eagle3(found):
        raise ModelError(
            f"vLLM's {architecture} does not give the states between its blocks: run the model {name!r} with "
            'backend = "transformers"'
        )
    return Description(model.get_hidden_size(), model.max_model_len - 1, bool(model.is_multimodal_model), config)


def _configure(arguments: dict[str, Any]) -> Any:
    from vllm import EngineArgs

    config = EngineArgs(**arguments).create_engine_config()
    images = config.model_config.multimodal_config
    if images is not None:
        # The model's own processor has normalised the pixels.
        images.mm_device_do_normalize = False
    return config


class Engine:
    """A running engine.

    Parameters
    ----------
    arguments
        Of ``vllm.EngineArgs``.
    desk
        Where its connector brings the states.

    Raises
    ------
    ModelError
        If the engine cannot be started, or this process has one already.
    """

    def __init__(self, arguments: dict[str, Any], desk: Desk) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine.llm_engine import LLMEngine

        if not _one.acquire(blocking=False):
            raise ModelError("this process runs a vLLM engine already: close that session, or use another process")
        self._desk = desk
        self._changed = _Changed()
        try:
            self._engine = LLMEngine.from_vllm_config(_configure(arguments), disable_log_stats=True)
        except BaseException as error:
            self._restore()
            if not isinstance(error, Exception):
                raise
            raise ModelError(f"vLLM's engine cannot start: {_reason(error)}") from error
        finally:
            self._changed.restore_random()
        self._one_token = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
        # What the cache could not hold is cut off when the engine starts.
        self.max_length = int(self._engine.vllm_config.model_config.max_model_len) - 1

    def run(self, batch: RequestBatch) -> None:
        """Run the prompts of a batch; their states have been brought to the desk, or are on their way there.

        Raises
        ------
        ModelError
            If the engine fails.
        """
        try:
            numbers: dict[str, int] = {}
            for number, request in enumerate(batch.requests):
                numbers[self._engine.add_request(str(number), request, self._one_token)] = number
            self._desk.begin(batch, numbers)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        except Exception as error:
            raise ModelError(
                f"vLLM failed in a batch of {len(batch.requests)} prompts of {batch.n_tokens} tokens: {_reason(error)}"
            ) from error

    def close(self) -> None:
        """End the engine, and give its memory back."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine
        cleanup_dist_env_and_memory()
        self._restore()

    def _restore(self) -> None:
        self._changed.restore_functions()
        _one.release()


# vLLM keeps the ranks, caches and connectors of an engine in its modules.
_one = threading.Lock()


class _Changed:
    """What vLLM changes for all of the process: the state of random numbers, and, on a CPU, functions of torch."""

    def __init__(self) -> None:
        import numpy as np
        import torch

        names = [(torch, "set_num_threads"), (torch.accelerator, "synchronize"), (torch.accelerator, "empty_cache")]
        self._functions = [(module, name, getattr(module, name)) for module, name in names]
        self._threads = torch.get_num_threads()
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002

    def restore_random(self) -> None:
        """Put back the state of random numbers, which starting an engine sets."""
        import numpy as np
        import torch

        plain, of_numpy, of_torch = self._random
        random.setstate(plain)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)

    def restore_functions(self) -> None:
        """Put back the functions, which a running engine needs as it has made them."""
        import torch

        for module, name, value in self._functions:
            setattr(module, name, value)
        torch.set_num_threads(self._threads)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:6])}" if lines else type(error).__name__
