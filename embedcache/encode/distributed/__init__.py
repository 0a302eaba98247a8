"""Turns a plan into committed shards by several worker processes: dask.distributed, imported nowhere else.

::

    coordinator (the command itself)                      workers, one encoder each
    holds the store's lock, appends the journal           read, encode, stage shard files durably
        ── task: tile numbers of whole shards ──────────▶
        ◀─ each staged shard: its record, a few KB ─────
    publishes: intent, rename, record

Workers change nothing that is committed: what they stage is a file under a temporary name until the coordinator
publishes it. So a worker that dies, is cut off or runs twice costs work and nothing else.
"""
