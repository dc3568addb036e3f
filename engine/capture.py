"""Hooks that take the residual stream while a model runs, and keep only the selected positions.

The stream of a model with L blocks is read at L + 1 points: point p is the input of block p, point L the output of
the last block, before the final norm. ``embed`` is point 0, ``resid_pre`` of layer l is point l and ``resid_post``
of layer l is point l + 1: the input of the next block, so that features that a model adds between blocks are in it.
``final_norm`` is what the language model's head would read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError, ModelError
from sonde.store import ArraySpec

from .structure import Blocks, text_side
from .tokens import Selection, check_tokens

if TYPE_CHECKING:
    import torch

SITES = ("embed", "resid_pre", "resid_post", "final_norm")


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of every forward pass.

    Attributes
    ----------
    sites, tokens
        Names, as in the configuration.
    layers
        The model's layers of ``resid_pre`` and ``resid_post``, ascending.
    n_layers
        Number of blocks of the model.
    """

    sites: tuple[str, ...]
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    n_layers: int

    @classmethod
    def plan(cls, sites: tuple[str, ...], tokens: tuple[str, ...], layers: Any, n_layers: int) -> Capture:
        """Check what was asked for against a model of ``n_layers`` blocks; ``layers`` is "all" or numbers from 0.

        Raises
        ------
        InputError
            If a site, token selector or layer is unknown or given twice.
        """
        for site in sites:
            if site not in SITES:
                raise InputError(f"unknown site {site!r} in capture.sites; there are {', '.join(SITES)}")
            if sites.count(site) > 1:
                raise InputError(f"site {site!r} stands twice in capture.sites")
        check_tokens(tokens)
        chosen = tuple(range(n_layers)) if layers == "all" else tuple(sorted(set(layers)))
        if not chosen or chosen[0] < 0 or chosen[-1] >= n_layers:
            raise InputError(f"capture.layers {list(chosen)}: the model has layers 0 to {n_layers - 1}")
        return cls(sites, tokens, chosen, n_layers)

    def layers_of(self, site: str) -> tuple[int, ...]:
        """Layers that a site's arrays hold; ``embed`` is kept as layer 0, ``final_norm`` as the last layer."""
        return {"embed": (0,), "final_norm": (self.n_layers - 1,)}.get(site, self.layers)

    def points_of(self, site: str) -> tuple[int, ...]:
        """Points of the stream for each of a site's layers; the output of the final norm is point L + 1."""
        if site == "final_norm":
            return (self.n_layers + 1,)
        return tuple(layer + (site == "resid_post") for layer in self.layers_of(site))

    @property
    def points(self) -> tuple[int, ...]:
        """All points that are read, ascending."""
        return tuple(sorted({point for site in self.sites for point in self.points_of(site)}))

    def arrays(self, hidden: int) -> tuple[ArraySpec, ...]:
        """The store's arrays."""
        return tuple(ArraySpec(s, t, self.layers_of(s), hidden) for s in self.sites for t in self.tokens)


class _Stop(Exception):
    """Ends a forward pass that has given all that was asked of it."""


class Recorder:
    """Hooks on one model that record the selected stream of each forward pass.

    Parameters
    ----------
    model
        The base model; its forward pass is cut off after the last point that is wanted.
    blocks
        Its stack.
    capture
        What is wanted.
    """

    def __init__(self, model: Any, blocks: Blocks, capture: Capture) -> None:
        self._model = model
        self._text_model = text_side(model)
        self._capture = capture
        self._selection: Selection | None = None
        self._found: dict[int, torch.Tensor] = {}
        self._handles = []
        for point, block in enumerate(blocks.layers):
            if point in capture.points:
                self._handles.append(block.register_forward_pre_hook(self._on_input(point), with_kwargs=True))
        last = blocks.layers[-1].register_forward_hook(self._on_last_block)
        self._handles.append(last)
        if capture.n_layers + 1 in capture.points:
            if not blocks.norms:
                raise InputError("this model has no final norm after its last block: leave final_norm out of the sites")
            self._handles += [norm.register_forward_hook(self._on_norm) for norm in blocks.norms]
        self._after_last = False

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def run(self, inputs: dict[str, torch.Tensor], selection: Selection) -> torch.Tensor:
        """Run the model once.

        Parameters
        ----------
        inputs
            Keyword arguments of the model, on its device.
        selection
            Positions to keep.

        Returns
        -------
        torch.Tensor
            ``[point, batch, tokens, hidden]`` on the model's device.

        Raises
        ------
        ModelError
            If the pass did not come by every point.
        """
        import torch

        self._selection, self._found, self._after_last = selection, {}, False
        model = self._model if "pixel_values" in inputs else self._text_model
        try:
            with torch.inference_mode():
                model(**inputs, use_cache=False) if self._takes_cache else model(**inputs)
        except _Stop:
            pass
        finally:
            self._selection = None
        missing = [point for point in self._capture.points if point not in self._found]
        if missing:
            raise ModelError(
                f"the forward pass of {type(self._model).__name__} did not come by points {missing} of its stream"
            )
        return torch.stack([self._found.pop(point) for point in self._capture.points])

    @property
    def _takes_cache(self) -> bool:
        return hasattr(self._model.config.get_text_config(), "use_cache")

    def _on_input(self, point: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(point, args[0] if args else kwargs["hidden_states"])

        return hook

    def _on_last_block(self, module: Any, args: Any, output: Any) -> None:
        self._after_last = True
        if self._capture.n_layers in self._capture.points:
            self._keep(self._capture.n_layers, output if hasattr(output, "shape") else output[0])

    def _on_norm(self, module: Any, args: Any, output: Any) -> None:
        if self._after_last:
            self._keep(self._capture.n_layers + 1, output)

    def _keep(self, point: int, hidden: torch.Tensor) -> None:
        if self._selection is None:
            return
        self._found[point] = self._selection(hidden)
        if point == self._capture.points[-1]:
            raise _Stop
