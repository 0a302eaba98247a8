"""Run SAM's frozen image encoder once over a volume, keep every embedding, and train its decoder from there.

::

    import embedcache as ec

    store = ec.encode("scroll1.zarr", tile=512)      # EmbeddingStore; returns at once when all is there
    run = ec.train(store, labels="ink.zarr")         # Run: run.best, run.checkpoint, run.report()
    masks = ec.predict("fragment2.zarr", run.checkpoint)
"""

import embedcache.openmp  # noqa: F401 - before anything imports torch

# isort: split
from embedcache.encode import EncodeOptions, encode
from embedcache.errors import EmbedcacheError
from embedcache.geometry import Tile
from embedcache.progress import Silent, Terminal
from embedcache.results import Prediction, Run, evaluate, export, predict, report, submit, train
from embedcache.sam import register_encoder
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.train import Checkpoint, EmbeddingDataset, collate
from embedcache.train.before import check_names
from embedcache.volume import Preprocess, TileGrid, open_volume

open_store = EmbeddingStore.open

__all__ = [
    "Checkpoint",
    "EmbedcacheError",
    "EmbeddingDataset",
    "EmbeddingStore",
    "EncodeOptions",
    "EncodeSpec",
    "Prediction",
    "Preprocess",
    "Run",
    "Silent",
    "Terminal",
    "Tile",
    "TileGrid",
    "check_names",
    "collate",
    "encode",
    "evaluate",
    "export",
    "open_store",
    "open_volume",
    "predict",
    "register_encoder",
    "report",
    "submit",
    "train",
]
