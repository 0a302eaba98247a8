"""The one place that writes: durable files, locks, digests; and reading that follows no link.

A file appears under its final name only when all its bytes are on disk: they go to ``NAME.<pid>.partial``
in the same folder, are fsynced, renamed, and the folder is fsynced. What a killed process leaves behind is
such a ``*.partial`` file, which the next writer removes. Every step that changes what is in a file or folder is a
method of :class:`~embedcache.files.disk.Disk`, so that the fault tests can let each of them fail; locking a file,
and the hint to the system to begin writing, change nothing there and bypass it.
"""

from embedcache.files.appending import append_line, cut_file, sync_file
from embedcache.files.digests import (
    Buffer,
    canonical_json,
    crc32c,
    digest_json,
    sha256_file,
    sha256_hex,
)
from embedcache.files.durable import (
    create_file,
    free_bytes,
    partial_name,
    publish_file,
    stage_file,
    write_file,
)
from embedcache.files.flock import exclusive_lock, is_free
from embedcache.files.folders import fsync_folder, make_folder, sync_names
from embedcache.files.held import Held, holder_name
from embedcache.files.locks import (
    CLAIMS,
    MUTEX,
    Claim,
    claims_under_mutex,
    living_claims,
    mutex,
    range_lock,
    require_free,
)
from embedcache.files.reading import open_inside, read_inside, require_no_links
from embedcache.files.refusals import is_readers_fault, read_error, storage_error
from embedcache.files.removal import LITTER_NAME, PARTIAL_SUFFIX, remove_file, remove_litter, remove_tree

__all__ = [
    "CLAIMS",
    "LITTER_NAME",
    "MUTEX",
    "PARTIAL_SUFFIX",
    "Buffer",
    "Claim",
    "Held",
    "append_line",
    "canonical_json",
    "claims_under_mutex",
    "crc32c",
    "create_file",
    "cut_file",
    "digest_json",
    "exclusive_lock",
    "free_bytes",
    "fsync_folder",
    "holder_name",
    "is_free",
    "is_readers_fault",
    "living_claims",
    "make_folder",
    "mutex",
    "open_inside",
    "partial_name",
    "publish_file",
    "range_lock",
    "read_error",
    "read_inside",
    "remove_file",
    "remove_litter",
    "remove_tree",
    "require_free",
    "require_no_links",
    "sha256_file",
    "sha256_hex",
    "stage_file",
    "storage_error",
    "sync_file",
    "sync_names",
    "write_file",
]
