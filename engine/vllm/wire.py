"""States from a worker process to the process of the run: over a socket of this machine, as plain bytes."""

from __future__ import annotations

import json
import os
import threading
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING

from sonde.engine.recorder import States

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from .desk import Desk


class Sender:
    """The worker's end.

    Parameters
    ----------
    address, key
        Of the receiver.
    """

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key
        self._connection: Connection | None = None

    def send(self, numbers: tuple[int, ...], states: States) -> None:
        """Send what was read of samples."""
        if self._connection is None:
            self._connection = Client(self._address, "AF_UNIX", authkey=bytes.fromhex(self._key))
        parts = [("reduced", site, x) for site, x in states.reduced.items()]
        parts += [("kept", site, x) for site, x in states.kept.items()]
        parts = [(what, site, x.contiguous().cpu()) for what, site, x in parts]
        forms = [(what, site, str(x.dtype).removeprefix("torch."), list(x.shape)) for what, site, x in parts]
        self._connection.send_bytes(json.dumps({"numbers": numbers, "parts": forms}).encode())
        for _, _, x in parts:
            if x.numel():
                self._connection.send_bytes(_bytes_of(x))


class Receiver:
    """The run's end: a thread that gives a desk what arrives.

    Parameters
    ----------
    desk
        Where it goes.

    Attributes
    ----------
    address, key
        What a sender needs.
    """

    def __init__(self, desk: Desk) -> None:
        key = os.urandom(32)
        self.key = key.hex()
        self._listener = Listener(family="AF_UNIX", authkey=key)
        self.address = str(self._listener.address)
        threading.Thread(target=self._receive, args=(desk,), name="sonde-receive", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()

    def _receive(self, desk: Desk) -> None:
        import torch

        try:
            with self._listener.accept() as connection:
                while True:
                    told = json.loads(connection.recv_bytes())
                    arrived: Mapping[str, dict[str, torch.Tensor]] = {"reduced": {}, "kept": {}}
                    for what, site, dtype, shape in told["parts"]:
                        x = arrived[what][site] = torch.empty(shape, dtype=getattr(torch, dtype))
                        if x.numel():
                            connection.recv_bytes_into(_bytes_of(x))
                    desk.receive(tuple(told["numbers"]), States(arrived["reduced"], arrived["kept"]))
        except (EOFError, OSError):
            # Whoever waits for what does not come says so.
            return


def _bytes_of(x: torch.Tensor) -> memoryview:
    import torch

    return x.view(-1).view(torch.uint8).numpy().data
