"""From the device to the host: one copy a batch, beside the next forward pass."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.store import as_numpy

from .recorder import States

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Batches that are on their way, or being put to their places.
SLOTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class HostStates:
    """What was kept of one batch, on the host.

    Attributes
    ----------
    reduced, kept
        As of `States`.
    lasting
        Whether the arrays may be kept; else they are overwritten by a later batch.
    """

    reduced: Mapping[str, NDArray[Any]]
    kept: Mapping[str, NDArray[Any]]
    lasting: bool


class CopyOut:
    """Copies what was kept of a batch to the host.

    On a GPU everything is joined and goes to a slot of a ring of pinned memory, on a stream of its own, so that the
    next forward pass need not wait; who runs ahead of the slots waits for one.

    Parameters
    ----------
    device
        Where the states are.
    dtype
        What they are kept in.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        self._dtype = dtype
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._slots: queue.Queue[torch.Tensor] = queue.Queue()
            for _ in range(SLOTS):
                self._slots.put(torch.empty(0, dtype=dtype, pin_memory=True))

    def send(self, states: States) -> Arriving:
        """Start the copy of one batch; the states may be let go of."""
        import torch

        parts = {("reduced", site): x.to(self._dtype) for site, x in states.reduced.items()}
        parts |= {("kept", site): x.to(self._dtype) for site, x in states.kept.items()}
        if not self._cuda or all(x.device.type == "cpu" for x in parts.values()):
            return Arriving(self, parts, None, None)
        joined = torch.cat([x.reshape(-1) for x in parts.values()])
        slot = self._slots.get()
        try:
            if slot.numel() < joined.numel():
                slot = torch.empty(joined.numel(), dtype=self._dtype, pin_memory=True)
            self._stream.wait_stream(torch.cuda.current_stream(joined.device))
            with torch.cuda.stream(self._stream):
                slot[: joined.numel()].copy_(joined, non_blocking=True)
                arrived = self._stream.record_event()
            # Its memory is not given away before the copy is done.
            joined.record_stream(self._stream)
        except BaseException:
            self._slots.put(slot)
            raise
        sizes = [x.numel() for x in parts.values()]
        pieces = torch.split(slot[: joined.numel()], sizes)
        views = {key: piece.view(x.shape) for (key, x), piece in zip(parts.items(), pieces, strict=True)}
        return Arriving(self, views, slot, arrived)

    def free(self, slot: torch.Tensor) -> None:
        """Take a slot back."""
        self._slots.put(slot)


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """A copy on its way."""

    _ring: CopyOut
    _parts: Mapping[tuple[str, str], torch.Tensor]
    _slot: torch.Tensor | None
    _arrived: Any

    def wait(self) -> HostStates:
        """Wait until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        arrays: dict[str, dict[str, NDArray[Any]]] = {"reduced": {}, "kept": {}}
        for (what, site), x in self._parts.items():
            arrays[what][site] = as_numpy(x)
        return HostStates(arrays["reduced"], arrays["kept"], lasting=self._slot is None)

    def release(self) -> None:
        """Give its memory back: what is not lasting may be overwritten."""
        if self._slot is not None:
            self._ring.free(self._slot)
