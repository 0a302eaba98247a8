"""Turns model input into image embeddings: SAM's image encoder, frozen, in the fastest exact form known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from embedcache.errors import InputError, WeightsError
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE
from embedcache.sam.attention import replace_attention
from embedcache.sam.parts import build_encoder, is_registered
from embedcache.sam.weights import Weights

Precision = Literal["bf16", "fp32"]

OWN = "own"
"""``attention`` in the numerics of a registered encoder, which has whatever attention it has."""

_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
_INPUT_SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)
_CUDA_BATCH = 8  # more gives nothing: published runs are no faster at 32


def resolve_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Raises
    ------
    InputError
        When there is no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise InputError(f"There is no device {text!r}.", hint="Known: auto, cpu, cuda, cuda:N.")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= found:
            raise InputError(
                f"Device {text} is not there: torch {torch.__version__} sees {found} CUDA devices.",
                hint="Use --device cpu, or install a CUDA build of torch.",
            )
    return torch.device(text)


def resolve_precision(text: str, device: torch.device) -> Precision:
    """``auto``, ``bf16`` or ``fp32`` as what is used; auto is bf16 where the device computes in it natively.

    Raises
    ------
    InputError
        When there is no such precision.
    """
    if text == "bf16":
        return "bf16"
    if text == "fp32":
        return "fp32"
    if text != "auto":
        raise InputError(f"There is no precision {text!r}.", hint="Known: auto, bf16, fp32.")
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())


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
        What may change bits but not meaning, from an earlier run; what it names of ``attention``, ``batch`` and
        ``threads`` is obeyed. ``threads`` is set for the whole process, on a CPU only.

    Attributes
    ----------
    calls : int
        Images encoded so far, padding not counted.
    batch : int
        Static batch size: every batch is padded to it, so no embedding depends on its neighbours.
    numerics : dict of str to JSON
        ``attention``, ``compiled``, ``batch``, ``threads`` (0 where they play no part), ``device``, ``torch``.

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
    ) -> None:
        asked = dict(numerics or {})
        if asked.get("compiled"):
            raise InputError("A compiled encoder was asked for; this version does not compile.")
        on_cpu = device.type == "cpu"
        usual = "mask" if precision == "fp32" else "folded"
        attention = asked.get("attention", OWN if is_registered(weights.model_type) else usual)
        self.device, self.precision, self.calls = device, precision, 0
        self.batch = _positive("batch", asked.get("batch", 1 if on_cpu else _CUDA_BATCH))
        if on_cpu and asked.get("threads"):
            torch.set_num_threads(_positive("threads", asked["threads"]))
        self.numerics: dict[str, Any] = {
            "attention": attention,
            "compiled": False,
            "batch": self.batch,
            "threads": torch.get_num_threads() if on_cpu else 0,
            "device": "cpu" if on_cpu else f"cuda:{torch.cuda.get_device_name(device)}",
            "torch": torch.__version__.partition("+")[0],
        }
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = _load(weights, attention).to(device=device, dtype=self._dtype)

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

    def _pieces(self, inputs: Tensor) -> Iterator[Tensor]:
        """The embeddings of each static batch, float32 on the device."""
        if inputs.ndim != 4 or inputs.shape[1:] != _INPUT_SHAPE or inputs.dtype != torch.float32:
            raise InputError(
                f"Encoder input is {inputs.dtype} of shape {tuple(inputs.shape)}; "
                "torch.float32 of shape (B, 3, 1024, 1024) is expected."
            )
        for piece in torch.split(inputs, self.batch) if len(inputs) else ():
            with torch.inference_mode(), self._exact_float32():
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


def _joined(pieces: list[Tensor], device: torch.device) -> Tensor:
    """One plain tensor, as inference tensors cannot take part in training."""
    if not pieces:
        return torch.empty(0, *EMBEDDING_SHAPE, device=device)
    return torch.cat(pieces).clone() if len(pieces) > 1 else pieces[0].clone()


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1; found {value!r}.")
    return value


def _load(weights: Weights, attention: str) -> Any:
    model = build_encoder(weights.model_type)
    state = {
        name.removeprefix("image_encoder."): value.float() if value.is_floating_point() else value
        for name, value in weights.encoder_state().items()
    }
    model.load_state_dict(state, assign=True)
    if not is_registered(weights.model_type):
        replace_attention(model, attention)
    return model.requires_grad_(False).eval()
