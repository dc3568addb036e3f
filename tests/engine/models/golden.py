"""What a published model computes, as it was written down, held against what ours computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden"
# Of a tensor's largest magnitude, in float32.
TOLERANCE = 2e-5


class Golden:
    """The expected tensors of one folder.

    Attributes
    ----------
    inputs, expected
        Name -> tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.inputs = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "expected.safetensors")
        self._seen: set[str] = set()
        self._worst: dict[str, float] = defaultdict(float)

    def cases(self, suffix: str) -> list[str]:
        """Prefixes of the inputs that have this name behind them; at least one, or there would be nothing to hold."""
        found = sorted(name.removesuffix(suffix) for name in self.inputs if name.endswith(suffix))
        assert found, f"no input ends with {suffix}"
        return found

    def compare(self, name: str, got: torch.Tensor, valid: torch.Tensor | None = None, rows: Any = ...) -> None:
        """Hold a tensor against the expected one of this name: to rounding, or exactly where it is no float.

        ``valid`` says which of its positions count; ``rows`` which part of the expected tensor it is.
        """
        want = self.expected[name][rows]
        self._seen.add(name)
        assert got.shape == want.shape, (name, got.shape, want.shape)
        if not want.is_floating_point():
            assert got.equal(want), name
            return
        largest = float(self.expected[name].abs().max()) if want.numel() else 1.0
        if valid is not None:
            got, want = got[valid], want[valid]
        deviation = float((got - want).abs().max()) / (largest or 1.0) if want.numel() else 0.0
        group = ".".join(part for part in name.split(".") if not part.isdigit())
        self._worst[group] = max(self._worst[group], deviation)
        assert deviation <= TOLERANCE, (name, deviation)

    def compare_all(
        self, prefix: str, tensors: Mapping[str, torch.Tensor], valid: torch.Tensor | None = None, rows: Any = ...
    ) -> None:
        """Hold all tensors that are expected under a prefix against those of these names."""
        for name, got in tensors.items():
            if prefix + name in self.expected:
                self.compare(prefix + name, got, valid, rows)

    def holds(self, *prefixes: str) -> bool:
        """Whether there are tensors expected under each of these prefixes, all of which were compared."""
        for prefix in prefixes:
            expected = [name for name in self.expected if name.startswith(prefix)]
            left = [name for name in expected if name not in self._seen]
            assert expected, prefix
            assert not left, left
        for group, worst in sorted(self._worst.items()):
            print(f"{worst:.1e}  {group}")
        return bool(prefixes)


@contextmanager
def listening(places: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Name -> output of a module while this lasts; a name that ends with ``.input`` is its first argument."""
    heard: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        if name.endswith(".input"):
            return lambda module, args: heard.__setitem__(name.removesuffix(".input"), args[0].detach())

        def on_output(module: Any, args: Any, output: Any) -> None:
            # Some modules are called once more for what nobody reads.
            heard.setdefault(name, (output[0] if isinstance(output, tuple) else output).detach())

        return on_output

    handles = [
        module.register_forward_pre_hook(hook(name))
        if name.endswith(".input")
        else module.register_forward_hook(hook(name))
        for name, module in places.items()
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
