"""Turns a selection into tile numbers of a store; the volume itself need not be there any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from embedcache.store import EmbeddingStore
from embedcache.volume import Selection, Volume, open_volume, select
from embedcache.volume.channels import tile_planes


@dataclass(frozen=True)
class _Planes:
    """The store in the place of its volume: names and sizes of planes are all that a selection asks for."""

    store: EmbeddingStore

    @property
    def source(self) -> str:
        return str(self.store.path)

    @property
    def uniform(self) -> bool:
        return self.store.uniform

    def plane_size(self, plane: int) -> tuple[int, int]:
        return self.store.plane_size(plane)

    def plane_name(self, plane: int) -> str:
        return self.store.plane_name(plane)


def selected_tiles(
    store: EmbeddingStore, *, z_range: str | None, bbox: str | None, mask: str | None
) -> npt.NDArray[np.bool_]:
    """Which base tiles of a store touch a selection: bool (N,). A place counts once, however often it was seen.

    Raises
    ------
    VolumeError
        When the selection lies outside the volume, or the mask does not fit it.
    """
    selection = Selection(z_range=z_range, bbox=bbox, mask=mask)
    touched = select(store.table, selection, volume=cast(Volume, _Planes(store)))
    return np.asarray(touched & store.base)


def selected_planes(
    source: str,
    recipe: Mapping[str, Any],
    *,
    z_range: str | None,
    bbox: str | None,
    mask: str | None,
    image: str | None = None,
    anon: bool | None = None,
) -> int:
    """How many planes of a volume a selection touches when it is encoded by a recipe; nothing is encoded for it.

    Raises
    ------
    VolumeError
        When the volume cannot be opened, or the selection lies outside it.
    """
    channels = str(recipe.get("channels") or "repeat")
    if channels.startswith("depth:"):
        return 1  # projections over depth make one plane
    with open_volume(source, level=int(recipe.get("level", 0)), image=image, anon=anon) as volume:
        composite = tile_planes(channels, volume.n_planes) != volume.n_planes
        planes = [
            (plane, 0, 0, *volume.plane_size(0 if composite else plane))
            for plane in range(tile_planes(channels, volume.n_planes))
        ]
        selection = Selection(z_range=z_range, bbox=bbox, mask=mask)
        return int(select(np.array(planes, dtype=np.int64), selection, volume=volume).sum())
