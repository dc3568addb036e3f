"""Layers on their way from a store to a GPU."""

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("pinned", [None, True, False])
def test_a_layer_is_read_into_page_locked_memory_and_copied_from_there(
    pinned: bool | None, gpu: str, example: Any
) -> None:
    layer = example.store.layer("resid_post", "last", 5)
    x = layer.torch(pin_memory=pinned)
    assert x.is_pinned() == (pinned is not False)
    there = x.to(gpu, non_blocking=True)
    np.testing.assert_array_equal(there.cpu().numpy(), layer.numpy())


def test_a_pinned_tensor_is_read_into_again(gpu: str, example: Any) -> None:
    store = example.store
    out = store.layer("resid_post", "last", 0).torch()
    again = store.layer("resid_post", "last", 9).torch(out)
    assert again is out
    assert again.is_pinned()
    np.testing.assert_array_equal(again.to(gpu).cpu().numpy(), store.layer("resid_post", "last", 9).numpy())
