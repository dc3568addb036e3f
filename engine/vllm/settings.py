"""How vLLM is set up: as the configuration says, and so that nothing of a prompt is left out or done for nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.engine.config import ModelSection
from sonde.errors import InputError, ModelError

_SHORT, _LEAST, _MOST = 32, 8, 512
_MEMORY = 0.8
# Blocks of a few tokens waste less of the cache on short prompts than vLLM's own 128; the CPU's kernels want these.
_CPU_BLOCK = 32
_CPU_CACHE_SHARE = 0.25


def prepare_environment(section: ModelSection) -> None:
    """Say to vLLM by the environment what it takes no other way; before it is imported, as far as that is up to us.

    Raises
    ------
    InputError
        If the device is none that vLLM can be told of.
    """
    # The engine shares this process, so that states need not cross to another.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    quiet = {
        # Results go to stdout.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # Threads of the run beside the engine would be tied to the engine's cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if section.device in (None, "cpu", "cuda"):
        return
    kind, _, number = str(section.device).partition(":")
    if kind != "cuda" or not number.isdigit():
        raise InputError(f"model.device {section.device!r} with the backend vllm: say cpu, cuda or cuda:n")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    first, count = int(number), section.tensor_parallel or 1
    numbers = [str(i) for i in range(first, first + count)]
    if seen:
        numbers = [name for i, name in enumerate(seen.split(",")) if first <= i < first + count]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)


def find_device(section: ModelSection) -> str:
    """The kind of device that the installed vLLM runs on: ``cuda`` or ``cpu``.

    Raises
    ------
    ModelError
        If vLLM is not installed.
    InputError
        If it is not the kind that the configuration names.
    """
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ModelError(
            f"the backend vllm needs vLLM, which cannot be imported here ({error}): install it in an "
            'environment of its own, or run with backend = "transformers"'
        ) from error
    kind = str(current_platform.device_type)
    if section.device is not None and section.device.partition(":")[0] != kind:
        raise InputError(
            f"model.device is {section.device!r}, but the vLLM that is installed runs on {kind}: leave the device out"
        )
    return kind


def count_sequences(token_budget: int) -> int:
    """Most prompts that run in one step: as many as are 32 tokens long in a full one, 8 to 512."""
    return min(_MOST, max(_LEAST, token_budget // _SHORT))


def step_arguments(token_budget: int) -> dict[str, int]:
    """Arguments that bound a step of the engine: its tokens (longer prompts run in pieces of so many) and prompts."""
    sequences = count_sequences(token_budget)
    return {"max_num_batched_tokens": max(token_budget, sequences), "max_num_seqs": sequences}


def engine_arguments(
    section: ModelSection, folder: Path, points: Sequence[int], connector: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of ``vllm.EngineArgs`` that do not depend on the size of a step.

    Parameters
    ----------
    folder
        Of the model.
    points
        Of the stream: id p is the input of block p, id L the output of the last of L blocks.
    connector
        What our connector is told.
    """
    return {
        "model": str(folder),
        "dtype": section.dtype,
        "load_format": "dummy" if section.weights == "random" else "auto",
        "use_tqdm_on_load": False,
        "trust_remote_code": section.trust_remote_code,
        "seed": 0,
        "tensor_parallel_size": section.tensor_parallel or 1,
        # As long as the model goes and the cache holds.
        "max_model_len": -1,
        # What a prefix has in the cache would not be computed, nor its states kept.
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        # Steps that overlap are filled as time has it; the same samples shall meet in them every time.
        "async_scheduling": False,
        "gpu_memory_utilization": section.memory or _MEMORY,
        "attention_backend": section.attention,
        # Images come prepared.
        "mm_processor_cache_gb": 0,
        "generation_config": "vllm",
        "disable_log_stats": True,
        # Graphs are captured for small steps alone.
        "compilation_config": {"cudagraph_mode": "NONE"},
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(points)}},
        },
        "kv_transfer_config": {
            "kv_connector": "StateConnector",
            "kv_connector_module_path": "sonde.engine.vllm.connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": connector,
        },
    }


def cpu_arguments(text_config: Any, token_budget: int, n_points: int, itemsize: int) -> dict[str, Any]:
    """Arguments that differ on a CPU: a cache of the size that is needed, where vLLM would take most of the memory.

    It holds a full step of short prompts twice over, or the longest prompt, but no more than a quarter of what is free.

    Parameters
    ----------
    text_config
        transformers' configuration of the language model.
    n_points, itemsize
        Points of the stream that are kept of every token, and bytes of a number.
    """
    import psutil

    heads = text_config.num_attention_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    keys = 2 * text_config.num_hidden_layers * (getattr(text_config, "num_key_value_heads", None) or heads) * head_dim
    of_token = (keys + n_points * text_config.hidden_size) * itemsize
    step = 2 * (token_budget + count_sequences(token_budget) * 2 * _CPU_BLOCK)
    longest = getattr(text_config, "max_position_embeddings", None) or step
    free = int(psutil.virtual_memory().available * _CPU_CACHE_SHARE)
    return {
        "block_size": _CPU_BLOCK,
        "kv_cache_memory_bytes": min(free, max(step, 2 * longest) * of_token),
        # Compiling costs more than it brings in runs of a CPU's length.
        "enforce_eager": True,
    }
