"""What one GPU and one disk can do at most, measured by the plainest operations: what the rest is compared with.

Products of large square matrices of normal random numbers (zeros run faster: they draw less power), copies inside the
device and to and from page-locked memory, and one file written from one thread and synchronised.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Emit = Callable[[Any], None]
"""Takes a row of results or an `Owed` as soon as there is one."""

_GROUPS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """Side of the matrices, bytes that are copied, bytes that are written, and seconds for each question."""

    side: int
    copied: int
    written: int
    seconds: float


SIZES = {
    "full": Size(8192, 2**30, 4 * 2**30, 1.0),
    "fast": Size(8192, 2**30, 2**30, 0.3),
    "tiny": Size(64, 2**16, 2**16, 0.0),
}


def measure(emit: Emit, folder: Path, device: str, size: str) -> None:
    """Measure each ceiling."""
    import torch

    chosen = SIZES[size]
    for name, precision in (
        ("bfloat16", "ieee"),
        ("float16", "ieee"),
        ("float32", "tf32"),
        ("float32", "ieee"),
        ("float64", "ieee"),
    ):
        rate = product_rate(device, getattr(torch, name), chosen.side, chosen.seconds, precision)
        what = f"product in {name}" + (f", {precision}" if name == "float32" else "")
        emit({"what": what, "TFLOP/s": rate})
    emit({"what": "copy inside the device, bytes read and written", "GB/s": memory_rate(device, chosen)})
    for what, rate in transfer_rates(device, chosen).items():
        emit({"what": what, "GB/s": rate})
    room = room_for(folder, chosen.written)
    emit({"what": "one file from one thread, fsync included", "GB/s": room / write_file(folder, room) / 1e9})


def wait(device: str) -> None:
    """Wait for all that the device was given to do."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: str, seconds: float) -> float:
    """Return the median seconds of one call, over groups of calls that take about ``seconds`` together."""
    run()
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    once = time.perf_counter() - start
    repeats = max(1, round(seconds / _GROUPS / once))
    groups = []
    for _ in range(_GROUPS):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait(device)
        groups.append((time.perf_counter() - start) / repeats)
    return statistics.median(groups)


def product_rate(device: str, dtype: Any, side: int, seconds: float, precision: str = "ieee") -> float:
    """Return TFLOP/s of a product of two square matrices, 2n³ operations; ``precision`` is what float32 is cut to."""
    import torch

    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _float32_products(precision):
        return 2 * side**3 / seconds_of(lambda: torch.matmul(a, b, out=out), device, seconds) / 1e12


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    import torch

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def memory_rate(device: str, size: Size) -> float:
    """Return GB/s of a copy from one place of the device's memory to another."""
    import torch

    source = torch.ones(size.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size.copied / seconds_of(lambda: target.copy_(source), device, size.seconds) / 1e9


def transfer_rates(device: str, size: Size) -> dict[str, float]:
    """Return GB/s of copies between the device and the host, by what is copied."""
    import torch

    there = torch.ones(size.copied, dtype=torch.uint8, device=device)
    hosts = {
        "page-locked": torch.ones(size.copied, dtype=torch.uint8, pin_memory=device != "cpu"),
        "pageable": torch.ones(size.copied, dtype=torch.uint8),
    }
    copies = {}
    for kind, host in hosts.items():
        copies[f"{kind} host memory to device"] = lambda host=host: there.copy_(host, non_blocking=True)
        copies[f"device to {kind} host memory"] = lambda host=host: host.copy_(there, non_blocking=True)
    return {what: size.copied / seconds_of(copy, device, size.seconds) / 1e9 for what, copy in copies.items()}


def room_for(folder: Path, wanted: int) -> int:
    """Bound bytes to be written to a fifth of what is free, in whole writes of `write_file`."""
    block = min(wanted, 2**24)
    return max(1, min(wanted, shutil.disk_usage(folder).free // 5) // block) * block


def write_file(folder: Path, nbytes: int) -> float:
    """Write one file, wait until it is on the disk, remove it, and return the seconds of all but the removal."""
    content = os.urandom(min(nbytes, 2**24))
    path = folder / "raw"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(0, nbytes, len(content)):
            file.write(content)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds
