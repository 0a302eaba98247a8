"""Turns this machine into what a figure must name: processor, cores, memory, versions, date."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from embedcache.peak import forget_peak, peak_memory

__all__ = ["forget_peak", "machine", "peak_memory"]

FAST_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""What of a processor's abilities its speed here hangs on."""

PACKAGES = ("torch", "segment-anything", "transformers", "zarr", "embedcache")


def machine(device: torch.device) -> dict[str, object]:
    """What a figure of this machine must name."""
    found: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return found | {name: found_version for name in PACKAGES if (found_version := _version(name))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    known = [flag for flag in FAST_FLAGS if flag in flags]
    return f"{fields.get('model name', platform.processor())} ({', '.join(known)})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
