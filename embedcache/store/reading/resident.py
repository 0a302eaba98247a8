"""Turns the sizes of tiles and memories into where the tiles are kept: on the GPU, in main memory, on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from embedcache.errors import ConfigError

Where = Literal["disk", "ram", "gpu"]

GPU_RESERVE = 0.25
"""Share of a GPU's free memory that is left to training before anything is kept there."""

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Residence:
    """Where embeddings are kept after their first read.

    Parameters
    ----------
    where : "disk", "ram" or "gpu"
        "disk": nowhere; the system may keep them in its own cache.
    bytes_needed, ram_free : int
        Of all of them, and of main memory free when this was decided.
    gpu_free : int or None
        Of the GPU's free memory; None without one.
    sentence : str
        The decision in words.
    """

    where: Where
    bytes_needed: int
    ram_free: int
    gpu_free: int | None
    sentence: str


def choose_residence(
    bytes_needed: int, device: torch.device, *, wish: str = "auto", processes_here: int = 1
) -> Residence:
    """Where embeddings are kept, by the memory that is free now.

    Parameters
    ----------
    bytes_needed : int
        Of all of them, as stored.
    device : torch.device
        Where they are used.
    wish : "auto", "gpu", "ram" or "disk"
    processes_here : int
        Processes of this machine that keep as many each.

    Raises
    ------
    ConfigError
        When the wish cannot be granted.
    """
    gpu_free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return decide_residence(bytes_needed, free_ram(), gpu_free, wish=wish, processes_here=processes_here)


def decide_residence(
    bytes_needed: int, ram_free: int, gpu_free: int | None, *, wish: str = "auto", processes_here: int = 1
) -> Residence:
    """As :func:`choose_residence`, of given sizes: unasked it takes half of what is free, if wished nearly all."""
    gpu_room = 0 if gpu_free is None else int(gpu_free * (1 - GPU_RESERVE))
    ram_room = ram_free // max(1, processes_here)
    granted: dict[str, tuple[Where, bool]] = {
        "gpu": ("gpu", bytes_needed <= gpu_room),
        "ram": ("ram", bytes_needed <= ram_room),
        "disk": ("disk", True),
    }
    if wish == "auto":
        fits_gpu, fits_ram = bytes_needed <= gpu_room // 2, bytes_needed <= ram_room // 2
        where: Where = "gpu" if gpu_free is not None and fits_gpu else "ram" if fits_ram else "disk"
    elif wish not in granted:
        raise ConfigError(f"--resident is {wish!r}; it must be auto, gpu, ram or disk.")
    else:
        where, possible = granted[wish]
        if not possible or (where == "gpu" and gpu_free is None):
            raise _refusal(wish, bytes_needed, ram_room, None if gpu_free is None else gpu_room)
    sizes = f"{_size(bytes_needed)} of embeddings; free are {_size(ram_free)} of main memory"
    if processes_here > 1:
        sizes += f" for {processes_here} processes"
    if gpu_free is not None:
        sizes += f" and {_size(gpu_free)} of the GPU"
    kept = {
        "gpu": "they stay on the GPU after their first read.",
        "ram": "they stay in main memory after their first read.",
        "disk": "they are read from the disk each time.",
    }[where]
    return Residence(where, bytes_needed, ram_free, gpu_free, f"{sizes}: {kept}")


def _refusal(wish: str, needed: int, ram_room: int, gpu_room: int | None) -> ConfigError:
    if wish == "gpu" and gpu_room is None:
        found = "training is on a CPU, with 0 bytes of GPU memory"
    else:
        room = gpu_room if wish == "gpu" and gpu_room is not None else ram_room
        found = f"{_size(room)} ({room} bytes) can be had"
    return ConfigError(
        f"--resident is {wish}: the embeddings are {_size(needed)} ({needed} bytes), but {found}.",
        hint="Leave --resident at auto, or choose disk.",
    )


def _size(count: int) -> str:
    """Bytes in words: 1.50 GiB."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def free_ram(meminfo: Path = _MEMINFO, membership: Path = _MEMBERSHIP, cgroups: Path = _CGROUPS) -> int:
    """Bytes of main memory that this process may still take: the machine's, or less by a container's limit."""
    free = 0
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limits = [room for folder in _own_cgroups(membership, cgroups) if (room := _room(folder)) is not None]
    return min([free, *limits])


def _own_cgroups(membership: Path, cgroups: Path) -> list[Path]:
    """Folders of the control groups that limit this process's memory, of version 2 and of version 1."""
    folders = []
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = cgroups / "memory" if controllers else cgroups
        inner = base / path.lstrip("/")
        folders += [inner, *inner.parents[: len(inner.relative_to(base).parts)]]
    return folders


def _room(folder: Path) -> int | None:
    """What a control group may still take: its limit less what is used and could not be given back."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _lines(folder / limit_name), _lines(folder / used_name)
        if not (limit and used and limit[0].isdigit() and used[0].isdigit()):
            continue
        stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if len(line.split()) > 1)
        cached = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        return max(0, int(limit[0]) - int(used[0]) + cached)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
