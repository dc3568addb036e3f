"""What this machine is, how fast its disk is, and what sonde can do on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .features import Feature, broken_requirements, features, why_not
from .progress import console
from .terminal import size

VERSIONS = ("torch", "torchvision", "transformers", "accelerate", "zarr", "numpy", "scipy", "scikit-learn", "dask")
_BLOCK = 4 << 20
# What the kernel allows this process' group, which psutil does not know.
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` finds.

    Attributes
    ----------
    versions
        Name -> version of sonde, Python and the packages that numbers depend on; "not installed" of one that is not.
    machine
        Operating system, processor, cores, threads of PyTorch and of each BLAS; memory in bytes.
    gpus
        Name, driver and memory (bytes) of each GPU that NVIDIA's driver knows, whether PyTorch can use it or not.
    codec_pipeline
        Class that zarr-python encodes and decodes with; whole uncompressed chunks do without.
    disk
        Folder, free bytes, and bytes per second of writing (with fsync) and reading; or why that was not tried.
    broken
        What sonde cannot do without, and cannot use.
    features
        What it can do besides.
    """

    versions: dict[str, str]
    machine: dict[str, Any]
    gpus: list[dict[str, Any]]
    codec_pipeline: str
    disk: dict[str, Any]
    broken: list[Feature]
    features: list[Feature]


def diagnose(folder: Path, nbytes: int) -> Diagnosis:
    """Look at everything; ``nbytes`` are written to ``folder``, read back and removed."""
    broken = broken_requirements()
    return Diagnosis(
        _versions(), _machine(), _gpus(), _codec_pipeline(), disk_speed(folder, nbytes), broken, list(features())
    )


def disk_speed(folder: Path, nbytes: int) -> dict[str, Any]:
    """Write, sync and read one file sequentially, and leave nothing behind.

    Returns
    -------
    dict
        ``folder``, ``free`` (bytes), and either ``write`` and ``read`` (bytes per second; reading after the page cache
        was asked to let go of the file) or ``skipped``, the reason.
    """
    facts: dict[str, Any] = {"folder": str(folder.absolute())}
    try:
        facts["free"] = shutil.disk_usage(folder).free
        if facts["free"] < 2 * nbytes:
            return facts | {"skipped": f"{facts['free']:,} bytes are free, twice {nbytes:,} are needed"}
        # Random, so that no file system compresses it.
        block = os.urandom(_BLOCK)
        n_blocks = max(1, nbytes // _BLOCK)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            start = time.perf_counter()
            for _ in range(n_blocks):
                file.write(block)
            os.fsync(file.fileno())
            facts["write"] = n_blocks * _BLOCK / (time.perf_counter() - start)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            into = bytearray(_BLOCK)
            start = time.perf_counter()
            while file.readinto(into):
                pass
            facts["read"] = n_blocks * _BLOCK / (time.perf_counter() - start)
    except OSError as error:
        return facts | {"skipped": f"{error.strerror or error}; give a folder that can be written to by --path"}
    return facts


def print_diagnosis(found: Diagnosis) -> None:
    """Print all of it, as one screen."""
    from rich.table import Column, Table
    from rich.text import Text

    out = console(stderr=False)
    facts = Table.grid(Column(style="bold"), Column(overflow="fold"), padding=(0, 1))
    for name, value in _facts(found).items():
        facts.add_row(name, Text(value))
    out.print(facts)
    table = Table("feature", "", "found", Column("what to do", overflow="fold"), box=None, padding=(0, 1, 0, 0))
    colours = {"ready": "green", "missing": "yellow", "broken": "red"}
    for feature in [*found.broken, *found.features]:
        state = Text(feature.state, colours[feature.state])
        table.add_row(Text(feature.name), state, Text(feature.note), Text(feature.remedy))
    out.print(table)
    if found.broken:
        out.print(Text(f"sonde cannot work without {', '.join(feature.name for feature in found.broken)}"))


def _facts(found: Diagnosis) -> dict[str, str]:
    machine, disk = found.machine, found.disk
    free = f"{size(disk['free'])} free" if "free" in disk else ""
    speed = (
        f"not measured: {disk['skipped']}"
        if "skipped" in disk
        else (f"writes {size(disk['write'])}/s with fsync, reads {size(disk['read'])}/s")
    )
    gpus = [
        f"{gpu['name']}, {size(gpu['memory'] or 0)} ({size(gpu['free'] or 0)} free), driver {gpu['driver']}"
        for gpu in found.gpus
    ]
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        "threads": ", ".join(f"{name}: {n}" for name, n in machine["threads"].items()),
        "memory": f"{size(machine['memory'])}, {size(machine['available'])} available",
        "GPU": "; ".join(gpus) or "none",
        "disk": ", ".join(filter(None, (disk["folder"], free, speed))),
        "zarr": found.codec_pipeline,
    }


def _versions() -> dict[str, str]:
    found = {"sonde": importlib.metadata.version("sonde"), "Python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    limit = _MEMORY_LIMIT.read_text().strip() if _MEMORY_LIMIT.is_file() else "max"
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory.total if limit == "max" else min(memory.total, int(limit)),
        "available": memory.available,
        "threads": _threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _threads() -> dict[str, str]:
    """Threads of PyTorch and of every BLAS that is loaded, with its version."""
    from threadpoolctl import threadpool_info

    threads = {}
    if not why_not("torch"):
        import torch

        threads["torch"] = str(torch.get_num_threads())
    why_not("numpy"), why_not("scipy.linalg")
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            threads[f"{pool['internal_api']} {pool['version'] or ''}".strip()] = str(pool["num_threads"])
    return threads


def _gpus() -> list[dict[str, Any]]:
    asked = ("name", "driver_version", "memory.total", "memory.free")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in told.strip().splitlines():
        name, driver, total, free = (cell.strip() for cell in line.split(","))
        in_mib = {"memory": total, "free": free}
        # A GPU that is divided (MIG) has no memory of its own to tell of.
        gpus.append(
            {"name": name, "driver": driver}
            | {key: int(value) << 20 if value.isdigit() else None for key, value in in_mib.items()}
        )
    return gpus


def _codec_pipeline() -> str:
    if why_not("zarr"):
        return "none: zarr cannot be imported"
    import zarr

    return str(zarr.config.get("codec_pipeline.path"))
