"""``sonde doctor`` says what is there, how fast the disk is, and which command brings what is missing."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sonde
from sonde.doctor import disk_speed

# What NVIDIA's tool says of a whole GPU.
NVIDIA_SMI = "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 80994"


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Of an environment with a driver, an old zarr, broken torchvision and xarray, and no datasets."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("torchvision", "xarray"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('an undefined symbol\\nand more')\n")
    (folder / "zarr-2.18.0.dist-info").mkdir()
    (folder / "zarr-2.18.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 2.18.0\n")
    (folder / "bin").mkdir()
    (folder / "bin/nvidia-smi").write_text(f"#!/bin/sh\necho '{NVIDIA_SMI}'\n")
    (folder / "bin/nvidia-smi").chmod(0o755)
    absent = "import sys; sys.modules['datasets'] = None; from sonde.cli import run; "
    command = [sys.executable, "-c", f"{absent}sys.exit(run(['doctor', '--size', '4', '--json']))"]
    path = os.pathsep.join([str(folder), str(Path(sonde.__file__).parents[1])])
    environment = os.environ | {
        "PYTHONPATH": path,
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_a_screen_for_people(call: Any, tmp_path: Path) -> None:
    answer = call("doctor", "--size", 4, "--path", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    for said in ("versions", f"torch {torch.__version__.partition('+')[0]}", "cores", str(tmp_path), "Pipeline", "GPU"):
        assert said in answer.out
    assert len(answer.out.splitlines()) < 40
    assert list(tmp_path.iterdir()) == []


def test_the_machine_and_its_disk_as_json(call: Any, tmp_path: Path) -> None:
    answer = call("doctor", "--size", 4, "--path", tmp_path, "--json")
    found = json.loads(answer.out)
    assert set(found) == {"versions", "machine", "gpus", "codec_pipeline", "disk", "broken", "features"}
    assert found["versions"] | {"sonde": sonde.__version__, "Python": platform.python_version()} == found["versions"]
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["available"] > 0
    assert found["machine"]["threads"]["torch"] == str(torch.get_num_threads())
    assert found["disk"]["folder"] == str(tmp_path)
    assert min(found["disk"][name] for name in ("free", "write", "read")) > 0
    assert found["broken"] == []
    for feature in found["features"]:
        assert set(feature) == {"name", "state", "note", "remedy"}
        assert feature["state"] in {"ready", "missing", "broken"}
    states = {feature["name"]: feature["state"] for feature in found["features"]}
    assert states["store.to_xarray"] == states["reports"] == "ready"
    assert (states["GPU"] == "ready") == torch.cuda.is_available()


def test_what_sonde_cannot_do_without_is_code_1(diagnosis: subprocess.CompletedProcess[str]) -> None:
    assert (diagnosis.returncode, diagnosis.stderr) == (1, "")
    zarr, torchvision = json.loads(diagnosis.stdout)["broken"]
    assert zarr["note"].startswith("2.18.0 is there, sonde needs zarr>=")
    assert zarr["remedy"].startswith("pip install 'zarr>=")
    assert torchvision["note"] == "RuntimeError: an undefined symbol"
    assert torchvision["remedy"] == "pip install --force-reinstall torchvision"


def test_what_can_be_done_without_has_a_state_and_a_remedy(diagnosis: subprocess.CompletedProcess[str]) -> None:
    features = {feature["name"]: feature for feature in json.loads(diagnosis.stdout)["features"]}
    assert features["store.to_xarray"]["state"] == "broken"
    assert features["store.to_xarray"]["note"] == "xarray: RuntimeError: an undefined symbol"
    datasets = {"state": "missing", "note": "no datasets", "remedy": "pip install datasets"}
    assert features["data.hf_dataset"] == {"name": "data.hf_dataset"} | datasets
    assert features["push, gated models"]["remedy"] == "unset HF_HUB_OFFLINE"
    assert features["S3"]["state"] == "ready"
    assert features["Azure"]["state"] == "missing"


def test_a_gpu_is_told_by_its_driver_whether_torch_can_use_it_or_not(
    diagnosis: subprocess.CompletedProcess[str],
) -> None:
    found = json.loads(diagnosis.stdout)
    told = {"name": "NVIDIA H100 80GB HBM3", "driver": "570.86.15", "memory": 81559 << 20, "free": 80994 << 20}
    assert found["gpus"] == [told]
    [gpu] = (feature for feature in found["features"] if feature["name"] == "GPU")
    if not torch.cuda.is_available():
        assert (gpu["state"], bool(gpu["remedy"])) == ("broken" if torch.version.cuda else "missing", True)


def test_a_disk_without_room_or_a_folder_is_not_measured(tmp_path: Path) -> None:
    full = disk_speed(tmp_path, 1 << 60)
    assert f"twice {1 << 60:,} are needed" in full["skipped"]
    absent = disk_speed(tmp_path / "absent", 4 << 20)
    assert absent["skipped"] == "No such file or directory; give a folder that can be written to by --path"
