"""What is read from a forward pass: the sites, and where in the model each of them is.

The residual stream of a model with L blocks is read at L + 1 points: point p is the input of block p, point L the
output of the last block, before the final norm.

==================== ==================================================================================================
``embed``            point 0: token embeddings with images and learned positions in them; kept as layer 0
``resid_pre``        of layer l: point l
``resid_post``       of layer l: point l + 1, the input of the next block, so that features that a model adds between
                     blocks (deepstack of Qwen3-VL) are in it
``attn_out``         what the attention of layer l adds to the stream: behind its output projection, and behind the
                     norm that post-norm models (Gemma 2 and 3, OLMo-2) put there
``mlp_out``          what the feed-forward part of layer l adds; ``resid_pre + attn_out + mlp_out`` is the block's
                     output, also where both read the same input (GPT-NeoX)
``z``                what goes into the output projection of the attention: all heads end to end
``k``, ``v``         keys and values as the attention of layer l uses them: after rotary positions and norms, the
                     key-value heads end to end (fewer than query heads where heads are grouped)
``final_norm``       what the language model's head would read; kept as the last layer
``vision/resid_post`` output of block l of the vision tower; its positions are the patches of the sample's images
``connector``        what the language model is given of the image: point 0 at the image's positions; kept as layer 0
==================== ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sonde.errors import InputError
from sonde.store import ArraySpec

from .selectors import VISION_TOKENS, check_tokens, has_positions

STREAM = ("embed", "resid_pre", "resid_post", "final_norm")
PARTS = ("attn_out", "mlp_out", "z")
CACHE = ("k", "v")
VISION = "vision/resid_post"
CONNECTOR = "connector"
FIXED = ("embed", "final_norm", CONNECTOR)
"""Sites of one layer, which ``layers`` does not choose."""
SITES = (*STREAM, *PARTS, *CACHE, VISION, CONNECTOR)

Tap = tuple[str, int]
"""One place in the model: (``stream``, point), (``final_norm``, 0), or (site, layer)."""


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of every forward pass.

    Attributes
    ----------
    sites, tokens
        Names, as in the configuration.
    layers
        Site -> layers that its arrays hold, ascending.
    n_layers
        Number of blocks of the language model.
    """

    sites: tuple[str, ...]
    tokens: tuple[str, ...]
    layers: Mapping[str, tuple[int, ...]]
    n_layers: int

    @classmethod
    def plan(
        cls, sites: tuple[str, ...], tokens: tuple[str, ...], layers: Any, n_layers: int, n_vision_layers: int = 0
    ) -> Capture:
        """Check what was asked for against a model.

        Parameters
        ----------
        layers
            "all", layer numbers from 0, or a mapping of sites to either; sites that it leaves out have all layers.
        n_layers, n_vision_layers
            Blocks of the language model, and of the vision tower.

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
        if VISION in sites and not n_vision_layers:
            raise InputError(f"the model has no vision tower with blocks to be found: leave {VISION} out of the sites")
        given = layers if isinstance(layers, Mapping) else dict.fromkeys(sites, layers)
        unknown = [site for site in given if site not in sites]
        if unknown:
            raise InputError(f"capture.layers names {unknown[0]!r}, which is not among capture.sites")
        fixed = {"embed": (0,), CONNECTOR: (0,), "final_norm": (n_layers - 1,)}
        chosen = {}
        for site in sites:
            n = n_vision_layers if site == VISION else n_layers
            wanted = given.get(site, "all")
            numbers = tuple(range(n)) if wanted == "all" else tuple(sorted(set(wanted)))
            if not numbers or numbers[0] < 0 or numbers[-1] >= n:
                raise InputError(f"capture.layers {list(numbers)}: the model has layers 0 to {n - 1} of {site}")
            chosen[site] = fixed.get(site, numbers)
        capture = cls(sites, tokens, chosen, n_layers)
        empty = [site for site in sites if not capture.tokens_of(site)]
        if empty:
            raise InputError(
                f"site {empty[0]!r} has none of the tokens {', '.join(tokens)}: add mean to capture.tokens"
            )
        return capture

    def taps_of(self, site: str) -> tuple[Tap, ...]:
        """Where each of a site's layers is read."""
        if site == "final_norm":
            return (("final_norm", 0),)
        if site in ("embed", "resid_pre", CONNECTOR):
            return tuple(("stream", layer) for layer in self.layers[site])
        if site == "resid_post":
            return tuple(("stream", layer + 1) for layer in self.layers[site])
        return tuple((site, layer) for layer in self.layers[site])

    @property
    def taps(self) -> frozenset[Tap]:
        """All places that are read."""
        return frozenset(tap for site in self.sites for tap in self.taps_of(site))

    def tokens_of(self, site: str) -> tuple[str, ...]:
        """Selectors that a site is kept for: those that its positions can have."""
        if site == VISION:
            return tuple(t for t in self.tokens if t in VISION_TOKENS)
        # All positions of the connector are the image's.
        return tuple(t for t in self.tokens if has_positions(t, in_image=site == CONNECTOR))

    def arrays(self, widths: Mapping[str, int]) -> tuple[ArraySpec, ...]:
        """The store's arrays, of the given lengths of a vector by site."""
        return tuple(ArraySpec(s, t, self.layers[s], widths[s]) for s in self.sites for t in self.tokens_of(s))
