"""How far the embedding of a moved tile is from the moved embedding: why views are encoded, and not made.

    embedcache encode --volume V --store S --views d4
    python benchmarks/equivariance.py S

For each place whose eight views are stored: the relative distance (L2) of the embedding of view v from the base
tile's embedding moved by v. Beside it, as a scale, the distance of embeddings of different places. SAM adds
absolute positions, and its patches are no symmetric functions of their pixels, so it is far from 0.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import numpy.typing as npt

from embedcache.geometry import see
from embedcache.store import EmbeddingStore


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store")
    parser.add_argument("--places", type=int, default=16, help="drawn at most; all when there are fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def distance(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Of two embeddings, as a share of the second one's length."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    """Measure and print."""
    asked = parse()
    store = EmbeddingStore.open(asked.store)
    bases = [int(n) for n in np.flatnonzero(store.base & store.committed) if len(store.views_of(int(n))) > 1]
    if not bases:
        raise SystemExit(f"{asked.store} holds no views; encode with --views d4 first.")
    chosen = np.random.default_rng(asked.seed).permutation(bases)[: asked.places].tolist()
    moved: dict[int, list[float]] = {}
    still: dict[int, list[float]] = {}
    between = []
    before = None
    for base in chosen:
        embedding = store[base].numpy()
        for view, number in store.views_of(base).items():
            if view:
                found = store[number].numpy()
                moved.setdefault(view, []).append(distance(found, see(embedding, view)))
                still.setdefault(view, []).append(distance(found, embedding))
        if before is not None:
            between.append(distance(before, embedding))
        before = embedding
    figures = {
        "model": store.spec.model_type,
        "untrained": bool(store.provenance.get("untrained")),
        "places": len(chosen),
        "from_the_moved_embedding": {
            view: round(float(np.mean(values)), 3) for view, values in moved.items()
        },
        "from_the_base_embedding": {view: round(float(np.mean(values)), 3) for view, values in still.items()},
        "between_places": round(float(np.mean(between)), 3) if between else None,
    }
    if asked.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
