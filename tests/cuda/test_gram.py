"""Gram products on a GPU, by tensor cores where that is exact, have the numbers of float64."""

import numpy as np
import pytest

from sonde.probes.backend import gram, to_numpy

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("exact", [True, False], ids=["bfloat16 numbers", "other float32 numbers"])
@pytest.mark.parametrize("n_rows", [0, 1, 2048])
def test_gram_products_equal_those_of_float64(device: str, exact: bool, n_rows: int) -> None:
    import torch

    x = torch.randn(n_rows, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 96)
    x = x.bfloat16().float() if exact else x
    found = gram(x.to(device))
    assert found.dtype == torch.float32
    wide = x.double().numpy()
    length = np.linalg.norm(wide, axis=0)
    # Rounding rows to bfloat16 would err by a thousandth of the lengths.
    np.testing.assert_array_less(np.abs(to_numpy(found) - wide.T @ wide), 1e-5 * np.outer(length, length) + 1e-30)
