"""Hooks that take the wanted states while a model runs, keep the selected positions, and end the pass behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError, ModelError

from .batches import Batch
from .capture import CACHE, CONNECTOR, PARTS, VISION, Capture, Tap
from .parts import ensure_parts, find_parts, first_tensor
from .prefix_hooks import PrefixHooks
from .sharing import Sharing
from .structure import Blocks, attention_alone, text_side
from .tokens import Layout, Selection

if TYPE_CHECKING:
    import torch


class _Stop(Exception):
    """Ends a forward pass that has given all that was asked of it."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What was kept of one batch, by site.

    Attributes
    ----------
    reduced
        ``[layer, sample, tokens, hidden]``, in the order of the capture's selectors that keep one vector a sample.
    kept
        ``[layer, token, hidden]`` of all samples end to end, where positions are kept one by one.
    """

    reduced: Mapping[str, torch.Tensor]
    kept: Mapping[str, torch.Tensor]


class Recorder:
    """Records the selected states of each forward pass of one model.

    Parameters
    ----------
    model
        The base model; its forward pass is cut off when all that is wanted has come by.
    blocks
        Its stack.
    capture
        What is wanted.
    vision
        Blocks of its vision tower, where they are wanted.
    example
        Keyword arguments for a short pass, needed to find the parts of the blocks.
    sharing
        How its attention is told of a shared prefix.

    Raises
    ------
    InputError
        If the model lacks a site.
    """

    def __init__(
        self,
        model: Any,
        blocks: Blocks,
        capture: Capture,
        vision: Sequence[Any] = (),
        example: Mapping[str, torch.Tensor] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._model = model
        self._text_model = text_side(model)
        self._capture = capture
        self._wanted = capture.taps
        self._found: dict[Tap, dict[str, tuple[torch.Tensor, torch.Tensor | None]]] = {}
        self._batch: Batch | None = None
        self._patches: Selection | None = None
        self._cache: Any = None
        self._after_last = False
        self._handles: list[Any] = []
        self._prefixes: PrefixHooks | None = None
        self._sites: dict[Tap, list[str]] = {}
        for site in capture.sites:
            for tap in capture.taps_of(site):
                self._sites.setdefault(tap, []).append(site)
        try:
            self._hook_stream(blocks)
            if sharing is not None:
                self._prefixes = PrefixHooks(model, blocks, sharing)
            self._hook_parts(blocks, example)
            for number, block in enumerate(vision):
                if (VISION, number) in self._wanted:
                    self._handles.append(block.register_forward_hook(self._on_output((VISION, number))))
        except BaseException:
            self.close()
            raise

    def _hook_stream(self, blocks: Blocks) -> None:
        if CONNECTOR in self._capture.sites and blocks.optional:
            raise InputError(
                f"{type(self._model).__name__} attends to images from outside of the stream: leave {CONNECTOR} out of "
                "the sites"
            )
        left_out: tuple[int, ...] = ()
        for point, block in enumerate(blocks.layers):
            # A block that is left out passes on what it would have been given.
            points = [p for p in (*left_out, point) if ("stream", p) in self._wanted]
            left_out = (*left_out, point) if point in blocks.optional else ()
            if points:
                self._handles.append(block.register_forward_pre_hook(self._on_input(points), with_kwargs=True))
            if any((site, point) in self._wanted for site in CACHE):
                self._handles.append(block.register_forward_hook(self._on_cache(point)))
        self._handles.append(blocks.layers[-1].register_forward_hook(self._on_last_block))
        if ("final_norm", 0) in self._wanted:
            if not blocks.norms:
                raise InputError("this model has no final norm after its last block: leave final_norm out of the sites")
            self._handles += [norm.register_forward_hook(self._on_norm) for norm in blocks.norms]

    def _hook_parts(self, blocks: Blocks, example: Mapping[str, torch.Tensor] | None) -> None:
        import torch

        sites = tuple(site for site in self._capture.sites if site in PARTS)
        if any(site in CACHE for site in self._capture.sites) and not self._takes_cache:
            raise InputError(f"{type(self._model).__name__} keeps no keys and values: leave k and v out of the sites")
        if not sites:
            return
        assert example is not None
        with torch.inference_mode():
            parts = find_parts(blocks.layers, lambda: self._text_model(**example))
        ensure_parts(parts, sites, self._capture.layers, self._model)
        for site in sites:
            for layer in self._capture.layers[site]:
                module = parts[layer].of(site)
                assert module is not None
                if site == "z":
                    handle = module.register_forward_pre_hook(self._on_given((site, layer)))
                else:
                    handle = module.register_forward_hook(self._on_output((site, layer)))
                self._handles.append(handle)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if self._prefixes is not None:
            self._prefixes.close()

    def run(self, batch: Batch, see: Callable[[], Batch] | None = None) -> States:
        """Run the model once over a batch that is on its device.

        Parameters
        ----------
        see
            Runs the vision side first, and makes of what it saw the batch that the rest of the model runs.

        Raises
        ------
        ModelError
            If the pass did not come by every place, or what is there is not a vector for each position.
        InputError
            If the layers of a site differ in length.
        """
        import torch

        self._batch, self._found, self._after_last = batch, {}, False
        try:
            with torch.inference_mode():
                if see is not None:
                    batch = self._batch = see()
                self._forward(batch)
        except _Stop:
            pass
        except BaseException:
            # What does not fit into memory is tried again in halves, which need what this took.
            self._found = {}
            raise
        finally:
            self._batch = self._cache = None
            self._patches = None
            if self._prefixes is not None:
                self._prefixes.begin(None)
        missing = sorted(self._wanted - self._found.keys())
        if missing:
            raise ModelError(
                f"the forward pass of {type(self._model).__name__} did not come by {missing}, which the sites "
                f"{list(self._capture.sites)} need"
            )
        return self._gather()

    def _forward(self, batch: Batch) -> None:
        if self._prefixes is not None:
            self._prefixes.begin(batch.prefixed)
        model = self._model if "pixel_values" in batch.inputs else self._text_model
        options: dict[str, Any] = {"use_cache": False} if self._takes_cache else {}
        if any(site in CACHE for site in self._capture.sites):
            self._cache = self._new_cache()
            options = {"use_cache": True, "past_key_values": self._cache}
        if batch.prefixed is not None and batch.prefixed.rope.dim() == 3 and model is self._model:
            # Found here, they need not be worked out for one long sequence first.
            options["position_ids"] = batch.prefixed.rope
        model(**batch.inputs, **options)

    def _gather(self) -> States:
        import torch

        reduced, kept = {}, {}
        for site in self._capture.sites:
            layers = [self._found[tap][site] for tap in self._capture.taps_of(site)]
            lengths = sorted({x.shape[-1] for x, _ in layers})
            if len(lengths) > 1:
                raise InputError(
                    f"the layers of {site} have vectors of {lengths} values: choose layers of one length for it in "
                    "capture.layers"
                )
            reduced[site] = torch.stack([x for x, _ in layers])
            if layers[0][1] is not None:
                kept[site] = torch.stack([x for _, x in layers if x is not None])
        self._found = {}
        return States(reduced, kept)

    @property
    def _takes_cache(self) -> bool:
        return hasattr(self._model.config.get_text_config(), "use_cache")

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        config = self._model.config.get_text_config()
        # A cache that knows the configuration forgets what a sliding window has passed; recurrent layers (Qwen3-Next)
        # and convolutions (LFM2) cannot do without one.
        return DynamicCache() if attention_alone(config) else DynamicCache(config=config)

    def _on_input(self, points: Sequence[int]) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for point in points:
                if ("stream", point) not in self._found:
                    self._keep(("stream", point), args[0] if args else kwargs["hidden_states"])

        return hook

    def _on_last_block(self, module: Any, args: Any, output: Any) -> None:
        self._after_last = True
        last = ("stream", self._capture.n_layers)
        if last in self._wanted:
            self._keep(last, first_tensor(output))

    def _on_norm(self, module: Any, args: Any, output: Any) -> None:
        if self._after_last:
            self._keep(("final_norm", 0), output)

    def _on_output(self, tap: Tap) -> Callable[..., None]:
        return lambda module, args, output: self._keep(tap, first_tensor(output))

    def _on_given(self, tap: Tap) -> Callable[..., None]:
        return lambda module, args: self._keep(tap, args[0])

    def _on_cache(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if self._cache is None or self._batch is None:
                return
            kept = self._cache.layers[layer] if layer < len(self._cache.layers) else None
            keys = getattr(kept, "keys", None)
            if kept is None or keys is None or keys.shape[2] != self._batch.layout.shape[1]:
                raise InputError(
                    f"layer {layer} of {type(self._model).__name__} keeps no keys and values of all positions: leave "
                    "it out of k and v"
                )
            states = {"k": keys, "v": kept.values}
            for site, x in states.items():
                if (site, layer) in self._wanted:
                    # [batch, head, position, dim] -> [batch, position, head * dim]
                    self._keep((site, layer), x.transpose(1, 2).flatten(2))

        return hook

    def _keep(self, tap: Tap, hidden: torch.Tensor | None) -> None:
        if self._batch is None or hidden is None:
            return
        if tap[0] == VISION:
            self._found[tap] = {VISION: (self._of_patches(hidden, self._batch), None)}
        else:
            # Sites that read one place with the same positions share what is selected of it.
            kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
            self._found[tap] = {}
            shape = self._batch.layout.shape
            if hidden.dim() == 2 and len(hidden) == shape[0] * shape[1]:
                # Batch and positions end to end.
                hidden = hidden.reshape(*shape, -1)
            if hidden.dim() != 3 or hidden.shape[:2] != shape:
                raise ModelError(
                    f"{type(self._model).__name__} has states of shape {list(hidden.shape)} at {tap} for {shape[0]} "
                    f"sequences of {shape[1]} positions, and not one vector for each position: the sites of this model "
                    "cannot be read"
                )
            for site in self._sites[tap]:
                selection = self._batch.selections.get(site, self._batch.selections["text"])
                if id(selection) not in kept:
                    kept[id(selection)] = selection(hidden)
                self._found[tap][site] = kept[id(selection)]
        if len(self._found) == len(self._wanted):
            raise _Stop

    def _of_patches(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Select of the vision tower's output, ``[image, patch, hidden]`` or all patches end to end, by sample."""
        import torch

        rows = list(batch.vision_rows)
        flat = hidden.flatten(0, 1) if hidden.dim() == 3 else hidden
        # Rows are images or tiles, each of as many patches, or patches.
        per_row = hidden.shape[1] if hidden.dim() == 3 and len(hidden) == sum(rows) else 1
        if 0 in rows or flat.shape[0] != per_row * sum(rows):
            raise InputError(
                f"the vision tower of {type(self._model).__name__} gives {flat.shape[0]} patches for {sum(rows)} rows "
                f"of pixels, which cannot be told apart by sample: leave {VISION} out of the sites"
            )
        counts = [n * per_row for n in rows]
        padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(flat, counts)), batch_first=True)
        if self._patches is None:
            valid = torch.arange(padded.shape[1]) < torch.tensor(counts).unsqueeze(1)
            tokens = self._capture.tokens_of(VISION)
            self._patches = Selection.plan(tokens, Layout.apart(valid, valid)).to(hidden.device)
        # Samples of one sequence have their images in common.
        return self._patches(padded)[0][batch.selections["text"].sequence]
