"""Turns the options of ``train`` into one checked, frozen record, kept as the run's ``config.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, counted
from embedcache.remote import is_remote
from embedcache.train.option_checks import check_options

DEFAULT_STEPS = 2000

Paths = str | Path | tuple[str | Path | None, ...] | None
"""One for all stores, or one for each."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything :func:`embedcache.train.trainer.train` can be told beyond stores and labels.

    Parameters
    ----------
    task : "auto", "semantic" or "instances"
    prompts : str, optional
        none | points | box | grid | iterative | mask | boxes; default: none for semantic labels, iterative for
        instances.
    objects : str, optional
        whole | components | ids; default: ids for prompted instances, else whole.
    train : "prompt+decoder" or "decoder"
        What learns; with ``decoder`` the prompt encoder stays as it is.
    loss : "sam", "bce+iou" or "mse"
    steps, epochs : int, optional
        Length of the training, at most one of the two; default 2,000 steps. It may stop early.
    batch_size : int, optional
        Images a step; default 4 on a CPU, more on a GPU by its free memory.
    lr : float
        The peak of warm-up and cosine.
    seed : int
        Decides everything random.
    val : str
        See :func:`embedcache.train.truth.split.make_split`.
    init : str, optional
        A checkpoint to start from, or ``random:SEED``; default: the decoder that came with the encoder.
    resume : bool
        Go on with a run that was interrupted.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    logger : "tensorboard", "wandb", "mlflow" or "none", or several with commas
    allow_partial : bool
        Train although some tiles that the labels touch are not encoded.
    max_objects : int
        At most this many objects of a tile in a step.
    rounds : int
        Rounds of ``iterative``: the first prompt, points where the answer is wrong, and two without a new point.
    validate_every : int, optional
        Steps between validations; default: a twentieth of the training, at least 20.
    patience : int
        Validations without improvement after which training stops; 0: never.
    schedule : "cosine", "linear", "step" or "constant"
        The learning rate's course after the warm-up.
    warmup : int, optional
        Steps of linear warm-up; default: a tenth of the training, at most 100.
    weight_decay, clip : float
        Of AdamW; and the largest norm of a gradient.
    accumulate : int
        Batches whose gradients make one step.
    amp : "off", "tf32" or "bf16"
        Arithmetic of the decoder.
    ema : float
        Decay of the average of weights that is validated and kept; 0: no average.
    save_every : int, optional
        Steps between states from which ``resume`` goes on; default: as ``validate_every``.
    adapter : bool
        Train a small block between the embeddings and the decoder too.
    views : "auto" or "off"
        Whether a store's views of a tile are drawn from.
    jitter : bool
        Vary where labels are cut and which window of a tile counts, in training.
    resident : "auto", "gpu", "ram" or "disk"
        Where the embeddings are kept.
    check_reads : "always", "once" or "never"
        When an embedding's checksum is compared: on every read, or on its first.
    read_threads : int, optional
        Threads that read; default: what suits the machine.
    overfit : int, optional
        Train and validate on so many tiles, to see whether a training can learn at all.
    ignore : int, optional
        Pixels of this label value do not count.
    start : path, or one per store, optional
        Predictions that ``--prompts mask`` starts from.
    validation : path, or one per store, optional
        Masks of what is held out: pixels that are positive there are validated, the others trained on.
    boxes : path, or one per store, optional
        Boxes of the user's own that ``--prompts boxes`` asks with.

    Raises
    ------
    ConfigError
        For a value that is none of these.
    """

    task: str = "auto"
    prompts: str | None = None
    objects: str | None = None
    train: str = "prompt+decoder"
    loss: str = "sam"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-4
    seed: int = 0
    val: str = "auto"
    supervision: Paths = None
    init: str | Path | None = None
    resume: bool = False
    device: str = "auto"
    logger: str = "tensorboard"
    allow_partial: bool = False
    max_objects: int = 8
    rounds: int = 11
    validate_every: int | None = None
    patience: int = 8
    schedule: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    amp: str = "off"
    ema: float = 0.0
    save_every: int | None = None
    adapter: bool = False
    views: str = "auto"
    jitter: bool = True
    resident: str = "auto"
    check_reads: str = "always"
    read_threads: int | None = None
    overfit: int | None = None
    ignore: int | None = None
    start: Paths = None
    validation: Paths = None
    boxes: Paths = None

    def __post_init__(self) -> None:
        check_options(self)

    def supervision_of(self, index: int, stores: int) -> str | Path | None:
        """The supervision mask of a store: one for all, or one per store."""
        return _of_store(self.supervision, "supervision masks", index, stores)

    def start_of(self, index: int, stores: int) -> str | Path | None:
        """The predictions that a store's mask prompts start from: one for all, or one per store."""
        return _of_store(self.start, "files to start from", index, stores)

    def validation_of(self, index: int, stores: int) -> str | Path | None:
        """The mask of what is held out of a store: one for all, or one per store."""
        return _of_store(self.validation, "validation masks", index, stores)

    def boxes_of(self, index: int, stores: int) -> str | Path | None:
        """The boxes that a store is asked with: one file for all, or one per store."""
        return _of_store(self.boxes, "files of boxes", index, stores)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; paths as text that means the same in every folder."""
        values = asdict(self)
        for name in ("supervision", "start", "validation", "boxes"):
            values[name] = _from_anywhere(values[name])
        return values | {"init": None if self.init is None else str(self.init)}


def _of_store(value: Paths, what: str, index: int, stores: int) -> str | Path | None:
    if isinstance(value, tuple):
        if len(value) != stores:
            raise ConfigError(f"{counted(stores, 'store')}, but {what} were given for {len(value)}.")
        return value[index]
    return value


def _from_anywhere(path: Paths) -> str | list[str | None] | None:
    if isinstance(path, tuple):
        return [None if item is None else _absolute(item) for item in path]
    return None if path is None else _absolute(path)


def _absolute(path: str | Path) -> str:
    return str(path) if is_remote(str(path)) else str(Path(path).expanduser().absolute())
