"""A peer in a process and an interpreter of its own, told when to run; both ends of what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_ROOT = Path(__file__).parents[1]
# No peer is to look for what it is given, or to report home.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}


class Told(Protocol):
    """What the process of a peer does when it is told to."""

    folder: Path

    def prepare(self) -> None:
        """Make ready for the next run."""
        ...

    def run(self) -> None:
        """Run, until what it keeps is on the disk."""
        ...

    def values(self) -> NDArray[np.float32]:
        """What the last run wrote."""
        ...


def answering() -> Callable[[object], None]:
    """Give what says a line of JSON to whoever asked; what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda content: print(json.dumps(content), file=answers, flush=True)


def serve(peer: Told, answer: Callable[[object], None]) -> None:
    """Do as the lines of stdin say, in the process of a peer."""
    for line in sys.stdin:
        match line.strip():
            case "prepare":
                peer.prepare()
                answer("prepared")
            case "run":
                peer.run()
                answer("ran")
            case "values":
                path = peer.folder / "values.npy"
                np.save(path, peer.values())
                answer(str(path))


class PeerProcess:
    """Starts at once, and loads its library while this process goes on.

    Parameters
    ----------
    module, name
        Module to run, which takes the name of a peer and the path of a job, says on stdout whether it is there, and
        answers every line of stdin by a line of JSON.
    job
        What the peer needs, as JSON; its file and the peer's log lie beside its ``folder``.
    python
        Interpreter; this process's if left out.

    Attributes
    ----------
    absent
        Why there is no such peer; empty if there is. Known after `wait`.
    versions
        Of its distributions. Known after `wait`.
    """

    def __init__(self, module: str, name: str, job: Mapping[str, Any], python: str | None = None) -> None:
        self.name = name
        self.absent = ""
        self.versions: dict[str, str] = {}
        place = Path(job["folder"])
        self._log = place.with_suffix(".log")
        path = place.with_suffix(".json")
        path.write_text(json.dumps(job), encoding="utf-8")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", module, name, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=_ROOT,
                env=os.environ | _OFFLINE,
                encoding="utf-8",
                start_new_session=True,
            )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        # A peer may have processes of its own, which would outlive it.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def wait(self) -> None:
        """Wait until the peer is loaded, or has said why it is not."""
        found = self._answer()
        self.absent = found.get("absent", "")
        self.versions = found.get("versions", {})

    def prepare(self) -> None:
        """Have the peer make ready for its next run."""
        self._ask("prepare")

    def run(self) -> None:
        """Have the peer run, until what it keeps is on the disk."""
        self._ask("run")

    def values(self) -> NDArray[np.float32]:
        """Read what the last run wrote."""
        values: NDArray[np.float32] = np.load(self._ask("values"))
        return values

    def _ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} ended before it answered; it said last:\n{said}")
        return json.loads(line)
