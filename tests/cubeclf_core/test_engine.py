"""Devices, by who started the process."""

from __future__ import annotations

import pytest

from cubeclf_core.engine import make_fabric


def test_who_shares_work_out_otherwise_waits_for_no_other_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that SLURM started beside others computes for itself."""
    told = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_NNODES": "1", "SLURM_LOCALID": "1"}
    for name, value in {**told, "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "any"}.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric("32-true", alone=True)
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
