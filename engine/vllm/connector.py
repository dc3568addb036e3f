"""The connector that vLLM loads: it takes the wanted rows of finished prompts out of the cache of hidden states.

It is made twice by vLLM, beside the scheduler and in every worker. The scheduler's side is always in the process of the
run; a worker is too, unless several share a model. The rows are read in the step in which the last piece of a prompt
has run, on the stream that it ran on: before the prompt's blocks can be given away, so that none has to be held back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec

from .desk import Desk
from .slots import Take, read
from .wire import Sender

if TYPE_CHECKING:
    import torch


@dataclass
class Takes(KVConnectorMetadata):
    """What the workers take when the step is over; None if no prompt ends in it."""

    take: Take | None


class StateConnector(KVConnectorBase_V1, SupportsHMA):
    """Reads what a desk wants and brings it there."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        self._desk = Desk.find(extra["desk"])
        self._wire: Sender | None = None if self._desk is not None else Sender(extra["address"], extra["key"])
        groups = [isinstance(g.kv_cache_spec, HiddenStateCacheSpec) for g in kv_cache_config.kv_cache_groups]
        # A model without other layers shares its one group with the states.
        self._group = groups.index(True) if True in groups else 0
        self._cache: torch.Tensor | None = None
        self._first = True

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing of a finished prompt is pending."""
        return False

    # In the workers.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find the cache of states."""
        from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer

        self._first = get_tensor_model_parallel_rank() == 0
        (name,) = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        self._cache = kv_caches[name]

    def wait_for_save(self) -> None:
        """Take what ends with this step; all ranks have the same states."""
        if not self._first or not self.has_connector_metadata():
            return
        take = self._get_connector_metadata().take
        if take is None:
            return
        assert self._cache is not None
        states = read(self._cache, take.to(self._cache.device))
        if self._desk is not None:
            self._desk.receive(take.numbers, states)
        else:
            assert self._wire is not None
            self._wire.send(take.numbers, states)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is ever loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is ever loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """States are taken when a prompt is whole, not layer by layer."""

    # Beside the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is ever loaded."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is ever loaded."""

    def build_connector_meta(self, scheduler_output: Any) -> Takes:
        """Find the prompts that are whole when the step is over."""
        assert self._desk is not None
        cached = scheduler_output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        computed |= {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
        finished = {}
        for request, n in scheduler_output.num_scheduled_tokens.items():
            length = self._desk.length(request)
            if length is not None and computed[request] < length <= computed[request] + n:
                finished[request] = scheduler_output.kv_connector_block_state.get_block_ids(request)[self._group]
        return Takes(self._desk.plan(finished) if finished else None)

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        """Let its blocks go."""
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        """Let its blocks go."""
        return False, None

    def get_finished_count(self) -> int:
        """Only the first rank has something to send."""
        return 1
