"""In which order the source is read, so that what is decoded once serves all tiles that need it."""

from embedcache.encode.reading.counting import ChunkReads, chunk_reads
from embedcache.encode.reading.groups import TaskGroup, TaskGroups, task_groups
from embedcache.encode.reading.order import Reading, plan_reading

__all__ = ["ChunkReads", "Reading", "TaskGroup", "TaskGroups", "chunk_reads", "plan_reading", "task_groups"]
