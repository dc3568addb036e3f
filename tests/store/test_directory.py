"""A local folder keeps the contract, whether it waits for the disk or not."""

from pathlib import Path

import pytest

from sonde.store import Location, locate

from .location_contract import LocationContract, ManyProcesses
from .store_contract import StoreContract


@pytest.mark.parametrize("fsync", [True, False], indirect=True)
class TestDirectory(LocationContract):
    @pytest.fixture
    def fsync(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    @pytest.fixture
    def location(self, tmp_path: Path, fsync: bool) -> Location:
        return locate(tmp_path / "run.zarr", fsync=fsync)

    def again(self, location: Location) -> Location:
        return locate(str(location))


class TestDirectoryOfProcesses(ManyProcesses):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Location:
        return locate(tmp_path / "run.zarr")


class TestStoreInADirectory(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/run.zarr"
