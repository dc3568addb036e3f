"""Models that transformers does not have, each in a room of its own: Qwen-VL, Emu and LaVIT, as they were published.

Each is found by the files of its checkpoint, or by its name on the hub, and loads these files as they are. Its language
side is transformers' own; what is built here is its vision side, and how images come into the stream.
"""

from __future__ import annotations

from pathlib import Path

from . import emu, lavit, qwen_vl
from .port import Loaded, Port

PORTS: tuple[Port, ...] = (emu.PORT, lavit.PORT, qwen_vl.PORT)


def find_port(name: str) -> Port | None:
    """The model of a folder or of a name on the hub; None if transformers has to know it."""
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    return next((port for port in PORTS if (port.recognises(folder) if is_folder else name in port.hub)), None)


__all__ = ["PORTS", "Loaded", "Port", "find_port"]
