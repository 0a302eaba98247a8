"""Turns a store as a command found it and as it is under the lock into leave to go on, or a ``MismatchError``.

Between the look that prepares a command and the lock that it writes under, another command may have taken changed
pixels over. What the first one has in hand then belongs to pixels that are no longer the store's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from embedcache.errors import MismatchError
from embedcache.store import EmbeddingStore
from embedcache.store.views import Segment
from embedcache.volume import ImageRecord


@dataclass(frozen=True)
class Seen:
    """What a store was when a command was prepared, as values: the store object itself goes with the journal.

    Parameters
    ----------
    fingerprint : str
        Of its spec.
    changes : int
        How often its source had changed.
    images : tuple of ImageRecord
        Of a collection.
    segments : tuple of Segment
        Which rows of its table are which views.
    """

    fingerprint: str
    changes: int = 0
    images: tuple[ImageRecord, ...] = ()
    segments: tuple[Segment, ...] = ()

    @classmethod
    def of(cls, store: EmbeddingStore) -> Seen:
        """The store as its object shows it now."""
        return cls(store.fingerprint, len(store.state.former), store.images, store.state.segments)

    def require(self, store: EmbeddingStore, *, all_images: bool = False) -> None:
        """Refuse a store that another command changed meanwhile; its lock must be held.

        Parameters
        ----------
        store : EmbeddingStore
            As it is under the lock.
        all_images : bool
            Whether images and views that were only added count as a change too.

        Raises
        ------
        MismatchError
            When its source changed, or its images.
        """
        now = Seen.of(store)
        images = now.images if all_images else now.images[: len(self.images)]
        segments = now.segments if all_images else now.segments[: len(self.segments)]
        if replace(now, images=images, segments=segments) != self:
            raise MismatchError(
                f"{store.path} was changed by another command while this one was being prepared. "
                "Nothing was encoded.",
                hint="Run the same command again; it looks at what is there now.",
            )
