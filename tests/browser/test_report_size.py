"""A report of many runs stays small enough to be sent around."""

from pathlib import Path

from sonde.probes import write_report

from .synthetic import make_run


def test_five_runs_of_48_layers_and_80_targets_stay_under_5_mb(tmp_path: Path) -> None:
    page = write_report([make_run(number, n_layers=48, n_targets=80) for number in range(5)], tmp_path)
    assert page.stat().st_size < 5_000_000
