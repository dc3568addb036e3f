"""Workers of a machine with several GPUs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sonde.engine import extract

from ..engine.runs import configuration, contents, text_samples

pytestmark = pytest.mark.cuda


def test_local_workers_take_a_gpu_each(gpu: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    import distributed
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    samples, folder = text_samples(24), model_folder("llama")
    extract(configuration(folder, tmp_path / "one.zarr"), samples=samples)

    def used() -> list[int]:
        import torch

        return [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_allocated(i)]

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(host="127.0.0.1", protocol="tcp", **options) as cluster:
        extract(configuration(folder, tmp_path / "run.zarr"), samples=samples, scheduler=cluster.scheduler_address)
        with distributed.Client(cluster) as client:
            taken = sorted(client.run(used).values())
    assert taken == [[0], [1]]
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "one.zarr")
