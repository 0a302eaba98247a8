"""Turns a run and its stores into the facts of its page: cost, where everything comes from, and licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.results.about import about_store
from embedcache.store import EmbeddingStore
from embedcache.train.run import Run
from embedcache.volume.origin import Origin


def training_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The line below the headline: what the training cost."""
    if not summary:
        return []
    facts = [
        ("steps", f"{summary['steps']:,}"),
        ("epochs", f"{summary['epochs']:.1f}"),
        ("time", duration(float(summary["seconds"]))),
        ("tiles per second", f"{summary['samples_per_second']:.2f}"),
        ("waiting for data", f"{100 * summary['data_wait_fraction']:.1f} %"),
    ]
    if summary.get("peak_memory_bytes"):
        facts.append(("peak memory", f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB"))
    return facts


def duration(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def provenance_facts(run: Run, stores: Sequence[EmbeddingStore | None]) -> list[tuple[str, str]]:
    """Stores, labels, recipe, digests and versions of a run, in order."""
    config = run.config
    facts: list[tuple[str, str]] = []
    for path, label, store in zip(config["stores"], config["labels"], stores, strict=True):
        facts += [("store", str(path)), ("labels", str(label))]
        if store is not None:
            facts += _of_store(store)
    facts += [("labels read as", str(sentence)) for sentence in config.get("alignment", [])]
    facts += [("embedding space", str(config["embedding_space"])), ("checkpoint", str(run.checkpoint))]
    facts += [(f"{name} in training", str(number)) for name, number in config.get("versions", {}).items()]
    return facts


def _of_store(store: EmbeddingStore) -> list[tuple[str, str]]:
    known = store.provenance
    recipe = known.get("recipe", {})
    facts = [("volume", str(known.get("source", "unknown")))]
    facts += [(words_of(name), text_of(value)) for name, value in recipe.items()]
    facts += [("encoder digest", store.spec.encoder_digest), ("fingerprint", store.fingerprint)]
    versions = ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items())
    facts += [("encoded with", versions)] if versions else []
    return facts


def words_of(name: str) -> str:
    """An option's name as words."""
    return name.replace("_", " ")


def text_of(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@dataclass(frozen=True)
class Sourced:
    """Where the data of one store come from, for the section "Data and licence"."""

    store: str
    volume: str
    origin: Origin
    resolution: str

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What is known, by name; that the licence is not known is said."""
        known = [
            ("volume", self.volume),
            ("fetched from", self.origin.url),
            ("resolution", self.resolution),
            (
                "licence",
                self.origin.licence or "unknown: nothing was told, and no text lay beside the volume",
            ),
            ("to be cited", self.origin.citation),
            ("note", self.origin.note),
        ]
        return [(name, value) for name, value in known if value]


def sources_of(run: Run, stores: Sequence[EmbeddingStore | None]) -> list[Sourced]:
    """One entry per store; of a store that is gone it is said that nothing is known."""
    found = []
    for path, store in zip(run.config["stores"], stores, strict=True):
        if store is None:
            found.append(
                Sourced(str(path), "the store is not there", Origin(licence="not known any more"), "")
            )
            continue
        about = about_store(store)
        volume = str(store.provenance.get("source") or "unknown")
        found.append(
            Sourced(str(path), volume, Origin.from_dict(about["origin"][0]), _resolution(about["geometry"]))
        )
    return found


def _resolution(geometry: Mapping[str, Any]) -> str:
    """Level, its scale, and what a pixel of it measures; empty where it was not recorded."""
    scale = geometry.get("scale")
    if not scale:
        return ""
    level = int(geometry.get("level") or 0)
    words = f"level {level}"
    if any(step != 1 for step in scale):
        words += f", {' × '.join(f'{step:g}' for step in scale)} voxels of the full resolution (z, y, x)"
    voxel = geometry.get("voxel_size")
    if voxel:
        sizes = [step * size for step, size in zip(scale, voxel, strict=True)]
        words += f", {' × '.join(f'{size:g}' for size in sizes)} µm per pixel"
    return words
