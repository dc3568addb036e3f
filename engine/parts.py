"""Where the parts of a block are: found by what flows through it, not by a list of names per model.

A block adds to the stream twice: ``output = input + attn_out + mlp_out``. The two modules whose outputs these are
differ between families (a plain attention, the norm behind it in post-norm models, a projection, a mixture of experts),
so they are looked for on a short run: the pair that makes the equation hold is the one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

# What the projection behind the heads is called, the same in all families of one lineage.
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj", "to_out", "o")


@dataclass(frozen=True, slots=True)
class Parts:
    """Modules of one block; None where it has no such part.

    Attributes
    ----------
    projection
        Mixes the heads; its input is ``z``.
    attn_out, mlp_out
        What each adds to the stream is this module's output.
    """

    projection: nn.Module | None
    attn_out: nn.Module | None
    mlp_out: nn.Module | None

    def of(self, site: str) -> nn.Module | None:
        """The module that a site is read at."""
        return {"z": self.projection, "attn_out": self.attn_out, "mlp_out": self.mlp_out}[site]


@dataclass(slots=True, eq=False)
class _Seen:
    """What a module was given, and what it returned."""

    module: nn.Module
    given: torch.Tensor | None
    returned: torch.Tensor


def find_parts(blocks: nn.ModuleList, run: Any) -> list[Parts]:
    """Find the parts of every block.

    Parameters
    ----------
    blocks
        The stack.
    run
        Called once; runs the model over a few tokens.
    """
    seen: list[dict[str, _Seen]] = [{} for _ in blocks]
    handles = []
    for block, modules in zip(blocks, seen, strict=True):
        for name, module in block.named_modules():
            handles.append(module.register_forward_hook(_remember(modules, name), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [_parts_of(modules) for modules in seen]


def _remember(modules: dict[str, _Seen], name: str) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        given: Any = args[0] if args else kwargs.get("hidden_states")
        returned = first_tensor(output)
        if returned is not None:
            # A copy: some models add to the stream in place.
            kept = given.detach().clone() if hasattr(given, "detach") else None
            modules[name] = _Seen(module, kept, returned.detach().clone())

    return hook


def first_tensor(output: Any) -> torch.Tensor | None:
    """The hidden states among what a module returned."""
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if hasattr(output, "shape") else None


def _parts_of(modules: Mapping[str, _Seen]) -> Parts:
    projection = _projection(modules)
    if projection is None or "" not in modules or modules[""].given is None:
        return Parts(None, None, None)
    block = modules[""]
    attention = projection.partition(".")[0]
    others = [name for name in modules if name and name.partition(".")[0] != attention]
    for attn in _attention_outputs(modules, projection, attention):
        for mlp in others:
            if mlp != attn and _adds_up(block, modules[attn], modules[mlp]):
                return Parts(modules[projection].module, modules[attn].module, modules[mlp].module)
    return Parts(modules[projection].module, None, None)


def _projection(modules: Mapping[str, _Seen]) -> str | None:
    names = [
        name
        for name, seen in modules.items()
        if name.rpartition(".")[2] in _PROJECTIONS and "att" in name and hasattr(seen.module, "weight")
    ]
    return names[-1] if names else None


def _attention_outputs(modules: Mapping[str, _Seen], projection: str, attention: str) -> Iterator[str]:
    """What the attention adds to the stream, likeliest first: a norm behind it, its own output, its projection's."""
    import torch

    direct = [name for name in (attention, projection) if name in modules]
    for name, seen in modules.items():
        if "norm" in type(seen.module).__name__.lower() and seen.given is not None:
            for source in direct:
                given = modules[source].returned
                if given.shape == seen.given.shape and torch.equal(given, seen.given):
                    yield name
    yield from direct


def _adds_up(block: _Seen, attn: _Seen, mlp: _Seen) -> bool:
    given, wanted = block.given, block.returned
    # Some feed-forward parts lay batch and positions end to end (OPT).
    if given is None or not given.numel() == wanted.numel() == attn.returned.numel() == mlp.returned.numel():
        return False
    total = sum(x.double().reshape(wanted.shape) for x in (given, attn.returned, mlp.returned))
    # Half-precision models round the stream at each addition.
    tolerance = 1e-4 if wanted.dtype.itemsize >= 4 else 3e-2
    return bool((total - wanted.double()).abs().max() <= tolerance * wanted.double().abs().max())


def ensure_parts(parts: list[Parts], sites: tuple[str, ...], layers: Mapping[str, tuple[int, ...]], model: Any) -> None:
    """Raise InputError if a layer has no part that a site reads."""
    for site in sites:
        lacking = [n for n in layers[site] if parts[n].of(site) is None]
        if lacking:
            why = (
                "its attention has no projection behind the heads"
                if site == "z"
                else "its output is not its input plus what attention and feed-forward add"
            )
            raise InputError(
                f"{type(model).__name__} has no site {site!r} in layer {lacking[0]}: {why}; leave the site out, or "
                "choose other layers"
            )
