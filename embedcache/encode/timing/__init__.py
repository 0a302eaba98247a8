"""What a run will take: the costs of its pieces, measured on this machine, and the sum of them."""

from embedcache.encode.timing.encoding import EncodingTimes, time_encoding
from embedcache.encode.timing.forecast import Cost, Costs, Forecast, Work, forecast
from embedcache.encode.timing.reading import ReadingTimes, time_reading
from embedcache.encode.timing.writing import WritingTimes, time_writing

__all__ = [
    "Cost",
    "Costs",
    "EncodingTimes",
    "Forecast",
    "ReadingTimes",
    "Work",
    "WritingTimes",
    "forecast",
    "time_encoding",
    "time_reading",
    "time_writing",
]
