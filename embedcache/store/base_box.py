"""Turns a tile's number into the box that it covers in the voxels of the volume's full resolution."""

from __future__ import annotations

from embedcache.store.store import EmbeddingStore
from embedcache.volume.channels import source_planes

Span = tuple[float, float]


def base_box(store: EmbeddingStore, number: int) -> tuple[Span, Span, Span]:
    """Spans of z, y and x, from the first voxel to the end of the last, at the full resolution.

    Planes that are made of several cover all from the first to the last of these. A store that does not say what
    a pixel of its level measures was made before that was recorded: it counts as halved in all directions from
    level to level, as the pyramids of scroll volumes are.

    Parameters
    ----------
    store : EmbeddingStore
        Of an array; images of a collection lie in no common space.
    number : int
        Tile number.

    Returns
    -------
    tuple of ((z0, z1), (y0, y1), (x0, x1))
        In voxels; times the voxel size of the ``geometry`` in the provenance they are micrometres.

    Raises
    ------
    InputError
        When the number has no tile.
    """
    tile = store.tile(number)
    scale = scale_of(store)
    shape = store.spec.volume.get("shape")
    planes = source_planes(
        store.spec.preprocess.channels, int(shape[0]) if shape else tile.plane + 1, tile.plane
    )
    return (
        (planes[0] * scale[0], (planes[-1] + 1) * scale[0]),
        (tile.y0 * scale[1], (tile.y0 + tile.height) * scale[1]),
        (tile.x0 * scale[2], (tile.x0 + tile.width) * scale[2]),
    )


def scale_of(store: EmbeddingStore) -> tuple[float, float, float]:
    """Voxels of the full resolution per pixel of the level that was encoded, z y x."""
    geometry = store.provenance.get("geometry")
    if isinstance(geometry, dict) and geometry.get("scale"):
        z, y, x = (float(value) for value in geometry["scale"])
        return z, y, x
    factor = float(2 ** int(store.spec.volume.get("level", 0)))
    return factor, factor, factor
