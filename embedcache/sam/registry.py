"""Turns a model's name into where its weights are and how to know them: SAM's own and micro-sam's.

The hex digits in Meta's file names are the start of the file's MD5, not of its SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass

_META = "https://dl.fbaipublicfiles.com/segment_anything"
_ZOO = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"
_CLOUD = "https://owncloud.gwdg.de/index.php/s"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One published checkpoint.

    Parameters
    ----------
    name : str
        What ``--model`` calls it.
    model_type : str
        ``vit_b``, ``vit_l`` or ``vit_h``.
    url : str
        Where it is published.
    size : int or None
        Bytes, where known.
    md5, sha256, xxh128 : str or None
        Digests of the file in hex, where known. All known ones must hold.
    about : str
        What it was trained on.
    """

    name: str
    model_type: str
    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    xxh128: str | None = None
    about: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file on this machine: as published, or the model's where that name says nothing."""
        published = self.url.rpartition("/")[2]
        return published if published.startswith("sam_vit_") else f"{self.name}.pt"

    @property
    def digests(self) -> dict[str, str]:
        """The known digests, by algorithm; the strongest first."""
        known = {"sha256": self.sha256, "md5": self.md5, "xxh128": self.xxh128}
        return {algorithm: value for algorithm, value in known.items() if value is not None}


def _micro_sam(name: str, url: str, xxh128: str, about: str) -> ModelEntry:
    return ModelEntry(name, name[:5], url, xxh128=xxh128, about=about)


_ENTRIES = (
    ModelEntry(
        "vit_b",
        "vit_b",
        f"{_META}/sam_vit_b_01ec64.pth",
        size=375042383,
        md5="01ec64d29a2fca3f0661936605ae66f8",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        xxh128="6923c33df3637b6a922d7682bfc9a86b",
        about="SAM, base",
    ),
    ModelEntry(
        "vit_l",
        "vit_l",
        f"{_META}/sam_vit_l_0b3195.pth",
        size=1249524607,
        md5="0b3195507c641ddb6910d2bb5adee89c",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        xxh128="a82beb3c660661e3dd38d999cc860e9a",
        about="SAM, large",
    ),
    ModelEntry(
        "vit_h",
        "vit_h",
        f"{_META}/sam_vit_h_4b8939.pth",
        size=2564550879,
        md5="4b8939a88964f0f4ff5f5b2642c598a6",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        xxh128="97698fac30bd929c2e6d8d8cc15933c2",
        about="SAM, huge",
    ),
    _micro_sam(
        "vit_b_lm",
        f"{_ZOO}/diplomatic-bug/1.2/files/vit_b.pt",
        "fe9252a29f3f4ea53c15a06de471e186",
        "micro-sam, cells in light microscopy, base",
    ),
    _micro_sam(
        "vit_l_lm",
        f"{_ZOO}/idealistic-rat/1.2/files/vit_l.pt",
        "017f20677997d628426dec80a8018f9d",
        "micro-sam, cells in light microscopy, large",
    ),
    _micro_sam(
        "vit_b_em_organelles",
        f"{_ZOO}/noisy-ox/1.2/files/vit_b.pt",
        "f3bf2ed83d691456bae2c3f9a05fb438",
        "micro-sam, organelles in electron microscopy, base",
    ),
    _micro_sam(
        "vit_l_em_organelles",
        f"{_ZOO}/humorous-crab/1.2/files/vit_l.pt",
        "810b084b6e51acdbf760a993d8619f2d",
        "micro-sam, organelles in electron microscopy, large",
    ),
    _micro_sam(
        "vit_b_histopathology",
        f"{_CLOUD}/sBB4H8CTmIoBZsQ/download",
        "ffd1a2cd84570458b257bd95fdd8f974",
        "micro-sam, nuclei in histopathology, base",
    ),
    _micro_sam(
        "vit_l_histopathology",
        f"{_CLOUD}/IZgnn1cpBq2PHod/download",
        "b591833c89754271023e901281dee3f2",
        "micro-sam, nuclei in histopathology, large",
    ),
    _micro_sam(
        "vit_h_histopathology",
        f"{_CLOUD}/L7AcvVz7DoWJ2RZ/download",
        "bd1856dafc156a43fb3aa705f1a6e92e",
        "micro-sam, nuclei in histopathology, huge",
    ),
    _micro_sam(
        "vit_b_medical_imaging",
        f"{_CLOUD}/f5Ol4FrjPQWfjUF/download",
        "40169f1e3c03a4b67bff58249c176d92",
        "micro-sam, medical images, base",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}
"""All published checkpoints this package knows, by name. ``vit_tiny`` is not among them: it was never trained."""
