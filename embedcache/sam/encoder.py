"""Turns model input into image embeddings: SAM's image encoder, frozen, in the fastest exact form known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from embedcache.errors import InputError, WeightsError
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE
from embedcache.sam.compiling import Compute, compiled, why_not_compiled
from embedcache.sam.device import Precision, resolve_device, resolve_precision
from embedcache.sam.numerics import complete
from embedcache.sam.parts import build_encoder, is_registered
from embedcache.sam.vit import make_fast
from embedcache.sam.weights import Weights

__all__ = ["Encoder", "Precision", "is_out_of_memory", "resolve_device", "resolve_precision"]

_INPUT_SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "_ALLOC_FAILED")


class Encoder:
    """SAM's image encoder, frozen.

    Parameters
    ----------
    weights : Weights
        Of any model type.
    device : torch.device
        Where to compute.
    precision : {"bf16", "fp32"}
        Of weights and activations.
    numerics : dict, optional
        What may change bits but not meaning, from an earlier run or in part; what it names is obeyed. ``threads``
        above 0 is set for the whole process, on a CPU only.
    say : callable, optional
        Told, in one line, what could not be done as asked.

    Attributes
    ----------
    calls : int
        Images encoded so far, padding not counted.
    batch : int
        Static batch size: every batch is padded to it, so no embedding depends on its neighbours.
    numerics : dict of str to JSON
        See :func:`embedcache.sam.numerics.complete`.

    Raises
    ------
    InputError
        When the numerics ask for what this encoder cannot do.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: torch.device,
        precision: Precision,
        numerics: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        registered = is_registered(weights.model_type)
        self.numerics = complete(numerics, device=device, precision=precision, registered=registered)
        self.device, self.precision, self.calls = device, precision, 0
        self.batch: int = self.numerics["batch"]
        if self.numerics["threads"]:
            torch.set_num_threads(self.numerics["threads"])
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._plain: Compute = _load(weights, self.numerics).to(device=device, dtype=self._dtype)
        self._model, self._say = self._plain, say
        if self.numerics["compiled"]:
            self._compile()

    @contextmanager
    def computing(self) -> Iterator[nn.Module | None]:
        """What it is made of, for looking at a part of it; within, torch is set as for a call.

        Yields
        ------
        nn.Module or None
            The encoder with its replaced parts; ``None`` where compiling left no parts to look at.
        """
        with torch.no_grad(), self._exact_float32():
            yield (
                self._model if isinstance(self._model, nn.Module) and not self.numerics["compiled"] else None
            )

    def _compile(self) -> None:
        """Compile for the static batch; where that fails, say so and go on uncompiled."""
        self._model = self._plain
        reason = why_not_compiled(self.device)
        if reason is None:
            self._say("Compiling the encoder, which takes up to some minutes.")
            example = torch.zeros(self.batch, *_INPUT_SHAPE, dtype=self._dtype, device=self.device)
            try:
                with torch.no_grad(), self._exact_float32():
                    self._model = compiled(self._plain, example)
                return
            except Exception as error:  # compilers fail in many ways, and none of them is a reason to stop
                if is_out_of_memory(error):
                    raise
                reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        self._say(f"The encoder runs uncompiled: {reason}.")
        self.numerics = {**self.numerics, "compiled": False}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Encode images.

        Parameters
        ----------
        inputs : Tensor
            ``(B, 3, 1024, 1024)`` float32, normalised and padded; B is any number.

        Returns
        -------
        Tensor
            ``(B, 256, 64, 64)`` float32 on the CPU.

        Raises
        ------
        InputError
            When the shape or dtype does not hold.
        """
        pieces = [piece.cpu() for piece in self._pieces(inputs)]
        return _joined(pieces, torch.device("cpu"))

    def on_device(self, inputs: Tensor) -> Tensor:
        """Encode images and leave the embeddings where they were computed; otherwise as a call.

        Returns
        -------
        Tensor
            ``(B, 256, 64, 64)`` float32 on the encoder's device.
        """
        return _joined(list(self._pieces(inputs)), self.device)

    def halve(self) -> bool:
        """After running out of memory: go on with half the static batch; what was compiled is compiled anew.

        Returns
        -------
        bool
            False where the batch is one image already, and nothing was changed.
        """
        if self.batch == 1:
            return False
        self.batch //= 2
        self.numerics = {**self.numerics, "batch": self.batch}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.numerics["compiled"]:
            self._say(f"The encoder is compiled anew, for {self.batch} images at once.")
            self._compile()
        return True

    def _pieces(self, inputs: Tensor) -> Iterator[Tensor]:
        """The embeddings of each static batch, float32 on the device."""
        if inputs.ndim != 4 or inputs.shape[1:] != _INPUT_SHAPE or inputs.dtype != torch.float32:
            raise InputError(
                f"Encoder input is {inputs.dtype} of shape {tuple(inputs.shape)}; "
                "torch.float32 of shape (B, 3, 1024, 1024) is expected."
            )
        for piece in torch.split(inputs, self.batch) if len(inputs) else ():
            with torch.no_grad(), self._exact_float32():
                embeddings = self._encode(piece)
            yield embeddings
        self.calls += len(inputs)

    def _encode(self, inputs: Tensor) -> Tensor:
        count = len(inputs)
        if count < self.batch:
            inputs = torch.cat([inputs, inputs[-1:].expand(self.batch - count, -1, -1, -1)])
        embeddings: Tensor = self._model(inputs.to(device=self.device, dtype=self._dtype))
        if embeddings.shape[1:] != EMBEDDING_SHAPE:
            raise WeightsError(
                f"The encoder gives embeddings of shape {tuple(embeddings.shape[1:])}; "
                f"{EMBEDDING_SHAPE} is needed.",
                hint="Register one whose output is (B, 256, 64, 64) for images of 1024 × 1024.",
            )
        return embeddings[:count].float().contiguous()

    def _exact_float32(self) -> AbstractContextManager[None]:
        """On a GPU, keep cuDNN's convolutions from rounding float32 to TF32."""
        if self.device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _joined(pieces: list[Tensor], device: torch.device) -> Tensor:
    """One tensor."""
    if not pieces:
        return torch.empty(0, *EMBEDDING_SHAPE, device=device)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _load(weights: Weights, numerics: Mapping[str, Any]) -> Any:
    model = build_encoder(weights.model_type)
    state = {
        name.removeprefix("image_encoder."): value.float() if value.is_floating_point() else value
        for name, value in weights.encoder_state().items()
    }
    model.load_state_dict(state, assign=True)
    if not is_registered(weights.model_type):
        make_fast(model, numerics["attention"], numerics.get("revision", 1))
    return model.requires_grad_(False).eval()
