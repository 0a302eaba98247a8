"""Turns a store's weights into a whole SAM that learns, and its labelled tiles into the order it sees them in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from embedcache.errors import MismatchError
from embedcache.sam.decoder import Decoder
from embedcache.sam.decoding.way import STOCK
from embedcache.sam.parts import build_encoder
from embedcache.sam.weights import resolve_weights
from embedcache.store import EmbeddingStore
from embedcache.train.questions.dataset import EmbeddingDataset


class Sam(nn.Module):
    """segment-anything's image encoder before its decoder, all of it trainable."""

    def __init__(self, image_encoder: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.image_encoder, self.decoder = image_encoder, decoder

    @classmethod
    def of(cls, store: EmbeddingStore) -> Sam:
        """With the weights that a store was encoded with."""
        recipe = store.provenance["recipe"]
        weights = resolve_weights(str(recipe["model"]), str(recipe["checkpoint"]))
        if weights.encoder_digest != store.spec.encoder_digest:
            raise MismatchError(
                f"The weights found are not those that {store.path} was encoded with.",
                differences={"encoder_digest": (store.spec.encoder_digest, weights.encoder_digest)},
            )
        encoder = build_encoder(weights.model_type)
        state = {
            name.removeprefix("image_encoder."): value.float().clone()
            for name, value in weights.encoder_state().items()
        }
        encoder.load_state_dict(state, assign=True)
        decoder = Decoder.from_state(weights.decoder_state())
        decoder.way = STOCK
        return cls(encoder.requires_grad_(True), decoder)


def backward(mean: Tensor) -> None:
    """Gradients of a loss, down to the pixels."""
    mean.backward()  # type: ignore[no-untyped-call]


def order_of(dataset: EmbeddingDataset, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, tile number) for ever: in each epoch all tiles with positives and at most as many without."""
    positive = dataset.labels.positive(dataset.store, dataset.tiles) > 0
    with_some, without = dataset.tiles[positive], dataset.tiles[~positive]
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        empty = rng.permutation(without)[: max(1, len(with_some))]
        for number in rng.permutation(np.concatenate([with_some, empty])).tolist():
            yield epoch, int(number)
        epoch += 1
