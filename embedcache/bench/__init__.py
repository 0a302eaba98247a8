"""This machine's figures beside the stock way, measured in one run."""

from embedcache.bench.ceiling import pipeline_ceiling
from embedcache.bench.encoders import EncoderBench, EncoderFigures, bench_encoders

__all__ = ["EncoderBench", "EncoderFigures", "bench_encoders", "pipeline_ceiling"]
