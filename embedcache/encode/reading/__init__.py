"""In which order the source is read, so that what is decoded once serves all tiles that need it."""

from embedcache.encode.reading.order import Reading, plan_reading

__all__ = ["Reading", "plan_reading"]
