"""Turns a trained decoder into one safetensors file that knows where it came from, and back.

Its metadata holds one JSON text under ``embedcache``: all that :class:`Checkpoint` lists, and a digest over the
tensors and that text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor

from embedcache.errors import MismatchError, WeightsError, command
from embedcache.files import canonical_json, write_file
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.adapter import build_model
from embedcache.train.checkpoint_file import (
    EXPECTED,
    FACTS,
    FORMAT,
    METADATA_KEY,
    content_digest,
    read_checkpoint,
)
from embedcache.train.questions.prompts import prompt_source


@dataclass(frozen=True)
class Checkpoint:
    """A trained prompt encoder and mask decoder, and everything needed to use them again.

    Parameters
    ----------
    path : Path or None
        Where it lies.
    state : dict of str to Tensor
        ``prompt_encoder.*`` and ``mask_decoder.*``.
    embedding_space : str
        Embeddings of this space only may be decoded with it.
    recipe : dict
        How the volume was encoded; ``predict`` on a new volume repeats it.
    task : "semantic" or "instances"
    prompts, objects : str
        What it was trained with.
    threshold : float
        In logits, as SAM's ``mask_threshold``; chosen on validation.
    split : dict
        :meth:`embedcache.train.truth.split.Split.to_dict`.
    stores, labels : tuple of str
        Absolute paths of what it was trained on.
    step : int
    metric : str
    value : float
        The metric on validation, and ``prompt_source`` with it.
    prompt_source : "free" or "oracle"
    untrained : bool
        Whether the encoder had random weights.
    fingerprints : tuple of str
        Of the stores. This and all that follows is not known (empty) of a file of format 1.
    encoder_digest, model_type : str
        Of the encoder behind the embeddings.
    settings : dict
        The options it was trained with.
    adapter : bool
        Whether ``state`` holds an adapter too.
    ema : float
        Decay of the average of weights that ``state`` is; 0: the weights themselves.
    """

    path: Path | None
    state: dict[str, Tensor] = field(repr=False)
    embedding_space: str
    recipe: dict[str, Any]
    task: str
    prompts: str
    objects: str
    threshold: float
    split: dict[str, Any] = field(repr=False)
    stores: tuple[str, ...]
    labels: tuple[str, ...]
    step: int
    metric: str
    value: float
    prompt_source: str
    untrained: bool
    fingerprints: tuple[str, ...] = ()
    encoder_digest: str = ""
    model_type: str = ""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    adapter: bool = False
    ema: float = 0.0

    def save(self, path: str | Path) -> Path:
        """Write the file, atomically; return its path."""
        path = Path(path)
        facts = {name: getattr(self, name) for name in FACTS}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.items()}
        text = canonical_json({"format": FORMAT, **facts})
        content = {"facts": text, "digest": content_digest(tensors, text)}
        write_file(path, to_safetensors(tensors, metadata={METADATA_KEY: canonical_json(content)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read and check a file.

        Raises
        ------
        WeightsError
            When it is missing, no checkpoint of ours, or of a newer format.
        CorruptionError
            When it is one of ours whose bytes were changed.
        """
        path = Path(path).absolute()
        if path.is_dir():
            path = path / "best.safetensors"
        if not path.is_file():
            raise WeightsError(f"The checkpoint {path} does not exist.", hint=EXPECTED)
        tensors, facts = read_checkpoint(path)
        return cls(path=path, state=tensors, **facts)

    @property
    def measured_prompts(self) -> str:
        """How the figure was asked that chose it: none where oracle prompts trained and free ones chose."""
        same = prompt_source(self.prompts) == self.prompt_source
        return self.prompts if same else "none"

    def model(self) -> Decoder:
        """What was trained, on the CPU: a decoder, with an adapter before it where it has one."""
        return build_model(self.state)

    def decoder(self) -> Decoder:
        """A decoder with this state, on the CPU.

        Raises
        ------
        WeightsError
            When it has an adapter, without which the decoder means nothing; see :meth:`model`.
        """
        if self.adapter:
            raise WeightsError(f"{self.path} has an adapter before its decoder; take its model() instead.")
        return Decoder.from_state(self.state)


def check_space(checkpoint: Checkpoint, store: EmbeddingStore) -> None:
    """Refuse to decode a store's embeddings with a checkpoint of another embedding space.

    Raises
    ------
    MismatchError
        Naming both spaces and the fields of the recipes that differ.
    """
    if checkpoint.embedding_space == store.embedding_space:
        return
    now = store.provenance.get("recipe", {})
    differences: dict[str, tuple[object, object]] = {
        name: (checkpoint.recipe.get(name), now.get(name))
        for name in sorted(set(checkpoint.recipe) | set(now))
        if checkpoint.recipe.get(name) != now.get(name)
    }
    differences["embedding_space"] = (checkpoint.embedding_space, store.embedding_space)
    raise MismatchError(
        f"The checkpoint {checkpoint.path} was trained on embeddings of another space than those in {store.path}.",
        differences=differences,
        hint="Encode the volume by the checkpoint's recipe: "
        + command(
            "encode", "--like", checkpoint.path, "--volume", store.provenance.get("source") or "VOLUME"
        ),
    )
