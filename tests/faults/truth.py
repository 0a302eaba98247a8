"""What a store says when it is opened and read whole, as one comparable value; and whether a damage was found."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.cli.app import app, register
from embedcache.errors import EmbedcacheError
from embedcache.files import sha256_hex
from embedcache.store import EmbeddingStore

from .outcome import Outcome, SilentError, detected, survived
from .stage import Stage

FOUND = {2, 3, 4}
"""Exit codes that name a damage: wrong input, mismatch (a newer version's), corruption."""


@dataclass(frozen=True)
class Reading:
    """What opening and reading a store gave.

    Parameters
    ----------
    facts : dict
        Everything that an embedding and its meaning consist of; of what could not be read, nothing.
    errors : tuple of (int, str)
        Exit code and message of each refusal.
    """

    facts: dict[str, Any]
    errors: tuple[tuple[int, str], ...]


def read(store: Path) -> Reading:
    """Open a store and read all of it, going on after refusals."""
    errors: list[tuple[int, str]] = []
    facts: dict[str, Any] = {}
    try:
        opened = EmbeddingStore.open(store)
        facts = _facts(opened)
    except EmbedcacheError as error:
        return Reading({}, ((error.exit_code, error.message),))
    for name, get in (("decoder", lambda: _tensors(opened.decoder_state())),):
        try:
            facts[name] = get()
        except EmbedcacheError as error:
            errors.append((error.exit_code, error.message))
    reader = opened.reader()
    for number in map(int, np.flatnonzero(opened.committed)):
        try:
            record = opened.record(number)
            embedding = reader.read([number]).numpy().tobytes()
        except EmbedcacheError as error:
            errors.append((error.exit_code, error.message))
            continue
        extremes = [repr(record.minimum), repr(record.maximum)]
        facts[f"tile {number}"] = [sha256_hex(embedding), record.crc32c, record.input_digest, *extremes]
    return Reading(json.loads(json.dumps(facts)), tuple(errors))


def _facts(store: EmbeddingStore) -> dict[str, Any]:
    return {
        "spec": store.spec.to_dict(),
        "fingerprint": store.fingerprint,
        "provenance": store.provenance,
        "shard_tiles": store.shard_tiles,
        "table": hashlib.sha256(store.table.tobytes()).hexdigest(),
        "committed": np.flatnonzero(store.committed).tolist(),
        "wanted": np.flatnonzero(store.wanted).tolist(),
        "skipped": np.flatnonzero(store.skipped).tolist(),
        "failed": {str(number): reason for number, reason in store.failed.items()},
        "numerics": store.numerics,
        "images": [image.to_dict() for image in store.images],
    }


def _tensors(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def verdict(stage: Stage, store: Path, expected: Reading, words: str, *, verify: bool = True) -> Outcome:
    """Hold a damaged store against its undamaged reading.

    A value that reads as another one has to be found by opening or reading, where it would be used; what changes
    no value, by the command ``verify``, which is asked when ``verify`` is set.
    """
    found = read(store)
    wrong = [
        name
        for name, value in found.facts.items()
        if value != expected.facts.get(name) and not (name in _OF_RECORDS and _fewer(found, expected))
    ]
    if wrong:
        if found.errors and not any(name.startswith("tile ") for name in wrong):
            return detected(n_found_beside_a_changed_value=1)
        raise SilentError(f"{words}: {', '.join(wrong)} changed, and reading did not say so")
    bad = [(code, message) for code, message in found.errors if code not in FOUND]
    assert not bad, f"{words}: {bad[0]}"
    if found.errors:
        return detected()
    if _fewer(found, expected):
        return detected(n_found_as_missing=1)  # whoever asks for the tile is told that it is not there
    if verify and _verified(stage, store, words) is not None:
        return detected(n_found_by_verify=1)
    return survived()


_OF_RECORDS = {"committed", "wanted", "skipped", "failed", "numerics"}


def _fewer(found: Reading, expected: Reading) -> bool:
    """Whether tiles are no longer committed: they are refused when asked for, so that is not silent."""
    return set(found.facts.get("committed", ())) < set(expected.facts["committed"])


def has_command(name: str) -> bool:
    """Whether this version has a command."""
    register()
    return name in app.commands


def _verified(stage: Stage, store: Path, words: str) -> str | None:
    """What ``verify`` says of a damaged store; None when it finds nothing."""
    if not has_command("verify"):
        return None
    child = stage.run("verify", store, "--json")
    assert child.code in (0, *FOUND), f"{words}: verify ended with {child.code}: {child.said[-800:]}"
    return None if child.code == 0 else child.said + child.log.with_suffix(".out").read_text()


def named(text: str, *words: str) -> None:
    """Refuse a message that lacks one of the words."""
    for word in words:
        assert re.search(word, text), f"{word!r} is not said: {text[-500:]}"
