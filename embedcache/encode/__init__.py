"""Stage one: missing tiles → embeddings → committed shards."""

from embedcache.encode.options import EncodeOptions
from embedcache.encode.pipeline import EncodeResult, encode, run_encode
from embedcache.encode.plan import EncodePlan

__all__ = ["EncodeOptions", "EncodePlan", "EncodeResult", "encode", "run_encode"]
