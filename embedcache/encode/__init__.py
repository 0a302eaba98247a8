"""Stage one: missing tiles → embeddings → committed shards."""

from embedcache.encode.options import EncodeOptions
from embedcache.encode.pipeline import encode, run_encode
from embedcache.encode.plan import EncodePlan
from embedcache.encode.result import EncodeResult

__all__ = ["EncodeOptions", "EncodePlan", "EncodeResult", "encode", "run_encode"]
