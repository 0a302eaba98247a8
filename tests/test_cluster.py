"""Workers' environments, and schedulers that are not understood."""

from __future__ import annotations

import pytest
import torch

from embedcache.encode.distributed.cluster import require_same_versions, visible_gpus, worker_environments
from embedcache.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        ({}, 3, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, 2, ["2", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, MIG-b"}, 2, ["GPU-a", "MIG-b"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, []),
    ],
)
def test_workers_take_the_gpus_that_this_process_sees(visible, count, names):
    assert visible_gpus(visible, count) == names


def test_each_worker_sees_one_gpu_and_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = [made["CUDA_VISIBLE_DEVICES"] for made in worker_environments(2, torch.device("cuda"))]
    assert gpus == ["3", "1"]
    with pytest.raises(ConfigError, match="--workers 3: there are 2 GPUs") as caught:
        worker_environments(3, torch.device("cuda"))
    assert "--device cpu" in caught.value.hint
    with pytest.raises(ConfigError, match="cuda:1 names one GPU"):
        worker_environments(2, torch.device("cuda:1"))
    assert len(worker_environments(3, torch.device("cpu"))) == 3


def versions(python: str = "3.11.7.final.0", distributed: str = "2026.8.0") -> dict[str, object]:
    return {"host": {"python": python}, "packages": {"distributed": distributed, "dask": "2026.8.0"}}


def test_a_scheduler_of_other_versions_is_refused_with_what_differs():
    require_same_versions({"client": versions(), "scheduler": versions(python="3.11.2.final.0")})
    with pytest.raises(InputError, match=r"distributed 2025\.1\.0 there, 2026\.8\.0 here") as caught:
        require_same_versions({"client": versions(), "scheduler": versions(distributed="2025.1.0")})
    assert "dask 2026" not in caught.value.message
    with pytest.raises(InputError, match=r"python 3\.12 there, 3\.11 here"):
        require_same_versions({"client": versions(), "scheduler": versions(python="3.12.1.final.0")})
