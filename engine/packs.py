"""Which samples run in one sequence, behind the prefix that they have in common."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .encoded import Encoded
from .sharing import Sharing

# A prefix of text alone counts from here on, and must save this share of the operations.
_LEAST_PREFIX = 32
_LEAST_SAVING = 0.1
# Every position of a sequence is multiplied with every other, masked or not: sequences do not grow far beyond their
# prefix, or beyond a length at which that is cheap beside the rest of a block. Behind an image, which each sequence
# sees anew, they may grow until it is a quarter of the rest.
_CHEAP_LENGTH = 1024
_DEAR_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Samples in one sequence of the model's input: one alone, or several behind a prefix of some positions."""

    samples: tuple[Encoded, ...]
    prefix: int = 0

    @classmethod
    def of(cls, samples: Sequence[Encoded], prefix: int) -> Pack:
        """Samples behind a prefix; one alone has none."""
        return cls(tuple(samples), prefix if len(samples) > 1 else 0)

    @property
    def length(self) -> int:
        """Positions of the sequence."""
        return self.prefix + sum(sample.length - self.prefix for sample in self.samples)

    def halve(self) -> tuple[Pack, Pack]:
        """Part its samples; both halves have the prefix."""
        half = len(self.samples) // 2
        return Pack.of(self.samples[:half], self.prefix), Pack.of(self.samples[half:], self.prefix)


def plan_packs(samples: Sequence[Encoded], sharing: Sharing | None, token_budget: int) -> list[Pack]:
    """Put samples that begin alike behind what they have in common.

    Text does where that saves a tenth of its operations; samples with images if all that goes into the vision side is
    the same, and the prefix ends behind the images.

    Parameters
    ----------
    samples
        Of one kind.
    sharing
        None: every sample stands alone.
    token_budget
        No sequence of several samples is longer.
    """
    alike: dict[Hashable, list[Encoded]] = {}
    for sample in samples:
        alike.setdefault(_beginning(sample) if sharing else sample.row, []).append(sample)
    packs: list[Pack] = []
    for group in alike.values():
        prefix = _common_prefix(group) if sharing else 0
        if prefix > max(_LEAST_PREFIX * (not group[0].other), *(sample.last_image for sample in group)):
            assert sharing is not None
            dear = int(_DEAR_SHARE * 6 * sharing.hidden_size) if group[0].other else 0
            longest = min(token_budget, max(2 * prefix, _CHEAP_LENGTH, dear), sharing.longest or token_budget)
            shared = _fill(group, prefix, longest)
            apart = sum(_cost(sample.length, sample.length / 2, sharing) for sample in group)
            together = sum(_cost(pack.length, pack.length, sharing) for pack in shared)
            # What the vision side is saved is not counted, and is more.
            if group[0].other or together <= (1 - _LEAST_SAVING) * apart:
                packs += shared
                continue
        packs += [Pack((sample,)) for sample in group]
    return packs


def _cost(positions: int, reached: float, sharing: Sharing) -> float:
    """Operations of a block, by those that a position takes on its own.

    Of hidden size H these are about ``24 H²`` in the products with weights, and ``4 H`` for every position that it is
    multiplied with in the attention; a causal kernel passes over half of them, one with a mask over none.
    """
    return positions * (1 + reached / (6 * sharing.hidden_size))


def _beginning(sample: Encoded) -> Hashable:
    # Samples of one image are prepared with one tensor of its pixels.
    if sample.other:
        return tuple(map(id, sample.other.values()))
    return tuple(sample.sequence["input_ids"][0, :_LEAST_PREFIX].tolist())


def _common_prefix(group: Sequence[Encoded]) -> int:
    """How many positions all have in common, while each keeps one of its own at least."""
    first, common = group[0], min(sample.length for sample in group) - 1
    for sample in group[1:]:
        for name, tensor in first.sequence.items():
            mine, its = (x[0, :common].reshape(common, -1).numpy() for x in (tensor, sample.sequence[name]))
            differs = np.flatnonzero((mine != its).any(axis=1))
            common = int(differs[0]) if len(differs) else common
    return common


def _fill(group: Sequence[Encoded], prefix: int, longest: int) -> list[Pack]:
    packs: list[Pack] = []
    waiting: list[Encoded] = []
    length = prefix
    for sample in group:
        length += sample.length - prefix
        if waiting and length > longest:
            packs.append(Pack.of(waiting, prefix))
            waiting, length = [], sample.length
        waiting.append(sample)
    return [*packs, Pack.of(waiting, prefix)]
