"""What is read: volumes, the tiles they are cut into, and how pixels become model input."""

from embedcache.volume.identity import identity_tiles, pixel_digest, volume_identity
from embedcache.volume.image_volume import ImageVolume
from embedcache.volume.opening import open_volume
from embedcache.volume.preprocess import Preprocess, resolve_preprocess
from embedcache.volume.selection import Selection, select
from embedcache.volume.tiles import TileGrid
from embedcache.volume.volume import ImageRecord, Volume
from embedcache.volume.window import clipped_share

__all__ = [
    "ImageRecord",
    "ImageVolume",
    "Preprocess",
    "Selection",
    "TileGrid",
    "Volume",
    "clipped_share",
    "identity_tiles",
    "open_volume",
    "pixel_digest",
    "resolve_preprocess",
    "select",
    "volume_identity",
]
