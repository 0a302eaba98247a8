"""Turns ``--init`` into the model that training starts from, and refuses one that has seen what is held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from embedcache.errors import ConfigError, WeightsError, counted
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.adapter import AdaptedDecoder
from embedcache.train.checkpoint import Checkpoint, check_space
from embedcache.train.checkpoint_file import EXPECTED
from embedcache.train.options import TrainOptions
from embedcache.train.sam_file import decoder_of_sam_file, is_sam_file
from embedcache.train.truth.split import Split

_RANDOM = "random:"
INIT_EXPECTED = (
    "--init takes a run's folder, its best.safetensors or last.safetensors, a file of SAM's (.pth, .pt, .bin or "
    ".safetensors), or random:SEED."
)


def starting_model(
    options: TrainOptions, stores: Sequence[EmbeddingStore], say: Callable[[str], None]
) -> Decoder:
    """What training starts from: the store's decoder, a checkpoint's, that of a SAM file, or a random one.

    Parameters
    ----------
    options : TrainOptions
    stores : sequence of EmbeddingStore
        Of one embedding space.
    say : callable
        Told what is worth knowing about a SAM file.

    Raises
    ------
    WeightsError, CorruptionError, MismatchError
        When ``init`` is no checkpoint, a damaged one, or one of another embedding space.
    ConfigError
        When ``random:`` is not followed by a number, or a checkpoint's adapter is not wanted.
    """
    model = _initial(options, stores, say)
    if not options.adapter and isinstance(model, AdaptedDecoder):
        raise ConfigError(
            f"--init {options.init} has an adapter, without which its decoder means nothing.",
            hint="Train on with --adapter.",
        )
    if options.adapter and not isinstance(model, AdaptedDecoder):
        return AdaptedDecoder.around(model, seed=options.seed)
    return model


def _initial(options: TrainOptions, stores: Sequence[EmbeddingStore], say: Callable[[str], None]) -> Decoder:
    if options.init is None:
        return stores[0].decoder()
    text = str(options.init)
    if text.startswith(_RANDOM):
        if not text.removeprefix(_RANDOM).isdigit():
            raise ConfigError(f"--init is {text!r}; a number follows random:, as in random:0.")
        return Decoder.random(int(text.removeprefix(_RANDOM)))
    if is_sam_file(text):
        return decoder_of_sam_file(text, stores[0], say)
    checkpoint = _load(text)
    check_space(checkpoint, stores[0])
    return checkpoint.model()


def _load(path: str) -> Checkpoint:
    try:
        return Checkpoint.load(path)
    except WeightsError as error:
        if error.hint == EXPECTED:
            error.hint = INIT_EXPECTED
        raise


def require_unseen(split: Split, stores: Sequence[EmbeddingStore], options: TrainOptions) -> None:
    """Refuse a start from a checkpoint that was trained on tiles which are held out now: figures would lie.

    Raises
    ------
    ConfigError
        Naming how many, and the split that would not.
    """
    if options.init is None or str(options.init).startswith(_RANDOM) or is_sam_file(options.init):
        return
    before = Split.from_dict(_load(str(options.init)).split)
    for index, numbers in split.val:
        trained = before.of_store("train", stores[index])
        seen = set() if trained is None else set(trained.tolist()) & set(numbers)
        if seen:
            raise ConfigError(
                f"--init {options.init} was trained on {len(seen)} of {counted(len(numbers), 'tile')} that would "
                f"be held out now ({split.rule}); the figures would not be honest.",
                hint=f"Hold out what it held out, with --val ({before.rule}).",
            )
