"""The cache: what was encoded, proven; where the two stages meet."""

from embedcache.store.creation import SHARD_TILES
from embedcache.store.journal.record import TileRecord
from embedcache.store.predictor import StorePredictor
from embedcache.store.reader import EmbeddingReader
from embedcache.store.spec import FORMAT, EncodeSpec
from embedcache.store.status import StoreStatus
from embedcache.store.store import EmbeddingStore
from embedcache.store.writer import StoreWriter

__all__ = [
    "FORMAT",
    "SHARD_TILES",
    "EmbeddingReader",
    "EmbeddingStore",
    "EncodeSpec",
    "StorePredictor",
    "StoreStatus",
    "StoreWriter",
    "TileRecord",
]
