"""What weights promise: found, proven, of the model asked for, and never executed."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from embedcache.errors import WeightsError
from embedcache.sam import MODELS, Decoder, ModelEntry, random_weights, resolve_weights
from embedcache.sam.download import Downloader
from embedcache.sam.search import find_or_download, micro_sam_folder
from embedcache.sam.weights import tensors_digest

TINY_ENCODER_DIGEST = "sha256:a99850ed4604b9be2a98357d9ce6b8079ba9c4d37c429c6776cf666abff6fa2e"
DECODER_DIGEST = "sha256:c87f9f70fd3397e131a640756936a79c1a97a5c73498862b19af72df85589a81"


@pytest.fixture(scope="module")
def tiny():
    return random_weights("vit_tiny", 0)


@pytest.fixture(autouse=True)
def _no_folders_of_this_user(tmp_path, monkeypatch):
    """Searches look into empty folders of the test, not into the developer's caches."""
    monkeypatch.setenv("EMBEDCACHE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "micro_sam"))
    monkeypatch.chdir(tmp_path)


class Server:
    """A real server on the loopback that can cut connections and refuse ranges."""

    def __init__(self, content: bytes, *, ranges: bool = True, cuts: int = 0, refuses: int = 0) -> None:
        self.content, self.ranges, self.cuts, self.refuses = content, ranges, cuts, refuses
        self.asked: list[str | None] = []

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.refuses:
            request.send_response(self.refuses)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if asked and self.ranges and start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        stop = len(self.content)
        if self.cuts:
            self.cuts -= 1
            stop = start + (len(self.content) - start) // 2
        request.wfile.write(self.content[start:stop])


@contextlib.contextmanager
def _serving(server: Server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.serve(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=functools.partial(listening.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/sam_vit_toy.pth"
        finally:
            listening.shutdown()
            thread.join()


CONTENT = os.urandom(3 * 2**20 + 17)


def _entry(url: str, content: bytes = CONTENT, **digests: str) -> ModelEntry:
    known = digests or {"sha256": hashlib.sha256(content).hexdigest()}
    return ModelEntry("toy", "vit_tiny", url, size=len(content), **known)


# ---------------------------------------------------------------- random weights


def test_the_random_recipe_is_pinned(tiny):
    assert tiny.encoder_digest == TINY_ENCODER_DIGEST
    assert tensors_digest(tiny.decoder_state()) == DECODER_DIGEST
    assert tiny.untrained


def test_every_parameter_is_drawn_but_the_norms(tiny):
    for name, value in tiny.state.items():
        constant = bool((value == value.reshape(-1)[0]).all()) and value.numel() > 1
        is_norm = "norm" in name or name.split(".")[-2] in ("1", "3", "4")
        assert not constant or is_norm, name
    assert tiny.state["image_encoder.pos_embed"].std() == pytest.approx(0.02, rel=0.02)
    assert tiny.state["image_encoder.blocks.0.attn.rel_pos_h"].std() == pytest.approx(0.05, rel=0.1)
    matrix = tiny.state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert matrix.std() == pytest.approx(1, rel=0.15)


def test_another_seed_gives_other_weights(tiny):
    other = random_weights("vit_tiny", 1)
    assert other.encoder_digest != tiny.encoder_digest


def test_the_decoder_of_a_seed_is_the_same_for_every_model_type(tiny):
    assert tensors_digest(Decoder.random(0).state_dict()) == tensors_digest(tiny.decoder_state())


def test_vit_tiny_is_random_zero_by_default(tiny):
    weights = resolve_weights("vit_tiny")
    assert (weights.source, weights.untrained) == ("random:0", True)
    assert weights.encoder_digest == tiny.encoder_digest


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1"])
def test_a_seed_must_be_a_number(text):
    with pytest.raises(WeightsError, match="seed"):
        resolve_weights("vit_tiny", text)


def test_an_unknown_model_is_named_with_the_known_ones():
    with pytest.raises(WeightsError, match="vit_q") as caught:
        resolve_weights("vit_q")
    assert "vit_b_lm" in str(caught.value)
    assert "vit_tiny" not in str(caught.value)
    with pytest.raises(WeightsError, match="Did you mean vit_tiny"):
        resolve_weights("vit_tinny")


# ---------------------------------------------------------------- files


def _wrappings(state):
    return {
        "plain": state,
        "torch_em": {"model_state": {f"sam.{name}": value for name, value in state.items()}, "epoch": 3},
        "lightning": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "model": {"model": state},
        "with_unetr": {**state, "decoder.base.weight": torch.zeros(3), "out_conv.bias": torch.zeros(1)},
    }


@pytest.mark.parametrize("wrapping", ["plain", "torch_em", "lightning", "model", "with_unetr"])
def test_known_layouts_of_checkpoints_are_read(tiny, tmp_path, wrapping):
    path = tmp_path / "a.pth"
    torch.save(_wrappings(tiny.state)[wrapping], path)
    weights = resolve_weights("vit_tiny", str(path))
    assert tensors_digest(weights.state) == tensors_digest(tiny.state)
    assert weights.source == str(path)
    assert not weights.untrained


def test_the_old_torch_format_and_safetensors_are_read(tiny, tmp_path):
    torch.save(tiny.state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tiny.state, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        assert resolve_weights("vit_tiny", name).encoder_digest == tiny.encoder_digest


def test_a_relative_path_is_kept_as_an_absolute_one(tiny, tmp_path):
    torch.save(tiny.state, tmp_path / "a.pth")
    assert resolve_weights("vit_tiny", "a.pth").source == str(tmp_path / "a.pth")


def test_the_encoder_digest_ignores_the_decoder(tiny, tmp_path):
    torch.save(tiny.encoder_state() | random_weights("vit_tiny", 7).decoder_state(), tmp_path / "a.pth")
    assert resolve_weights("vit_tiny", "a.pth").encoder_digest == tiny.encoder_digest


def test_the_encoder_digest_sees_one_changed_value(tiny, tmp_path):
    state = dict(tiny.state)
    state["image_encoder.neck.0.weight"] = state["image_encoder.neck.0.weight"].clone()
    state["image_encoder.neck.0.weight"][3, 5] += 1e-6
    torch.save(state, tmp_path / "a.pth")
    assert resolve_weights("vit_tiny", "a.pth").encoder_digest != tiny.encoder_digest


def test_a_checkpoint_of_another_model_type_names_both(tiny, tmp_path):
    torch.save(tiny.state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="vit_tiny checkpoint; vit_b was asked for"):
        resolve_weights("vit_b", "a.pth")


def test_missing_and_foreign_tensors_are_listed(tiny, tmp_path):
    state = {name: value for name, value in tiny.state.items() if name != "mask_decoder.iou_token.weight"}
    state["mask_decoder.hq_token.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"iou_token\.weight.*hq_token"):
        resolve_weights("vit_tiny", "a.pth")


def test_a_tensor_of_another_shape_is_named(tiny, tmp_path):
    state = dict(tiny.state) | {"image_encoder.pos_embed": torch.zeros(1, 16, 16, 192)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"pos_embed.*16, 16.*64, 64"):
        resolve_weights("vit_tiny", "a.pth")


def test_an_unknown_depth_is_said(tiny, tmp_path):
    state = {name: value for name, value in tiny.state.items() if ".blocks.1." not in name}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="width 192 and depth 1"):
        resolve_weights("vit_tiny", "a.pth")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint at all", b"PK\x03\x04 cut short", pickle.dumps([1, 2]), b"\x80\x02."],
    ids=["empty", "text", "zip", "list", "pickle"],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\."):
        resolve_weights("vit_tiny", name)


def test_a_cut_checkpoint_is_refused(tiny, tmp_path):
    stream = io.BytesIO()
    torch.save(tiny.state, stream)
    (tmp_path / "a.pth").write_bytes(stream.getvalue()[:-1000])
    with pytest.raises(WeightsError, match=r"a\.pth"):
        resolve_weights("vit_tiny", "a.pth")


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"epoch": 3}, torch.zeros(3)])
def test_tensors_that_are_not_sams_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"SAM checkpoint|no tensors by name"):
        resolve_weights("vit_tiny", "a.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_pickle_is_refused_and_not_executed(tiny, tmp_path, new_format):
    torch.save({**tiny.state, "x": Hostile()}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match="other classes") as caught:
        resolve_weights("vit_tiny", "a.pth")
    assert "system" in str(caught.value)
    assert not Path("executed").exists()


def test_a_file_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WeightsError, match=r"a\.pth may not be read") as caught:
        resolve_weights("vit_tiny", "a.pth")
    assert "owner and mode" in str(caught.value)


def test_a_missing_file_is_said():
    with pytest.raises(WeightsError, match=r"no checkpoint file .*nowhere\.pth"):
        resolve_weights("vit_tiny", "nowhere.pth")


# ---------------------------------------------------------------- search and download


def test_a_download_is_checked_loaded_and_found_again(tiny, tmp_path, monkeypatch):
    stream = io.BytesIO()
    torch.save(tiny.state, stream)
    server = Server(stream.getvalue())
    with _serving(server) as url:
        monkeypatch.setitem(MODELS, "toy", _entry(url, stream.getvalue()))
        weights = resolve_weights("toy")
        assert resolve_weights("vit_tiny", "toy").source == "toy"
    assert (weights.model_type, weights.source, weights.untrained) == ("vit_tiny", "toy", False)
    assert weights.encoder_digest == tiny.encoder_digest
    assert server.asked == [None]  # the second time it was there
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["sam_vit_toy.pth"]


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "xxh128"])
def test_a_wrong_digest_is_refused_and_nothing_is_kept(tmp_path, algorithm):
    with _serving(Server(CONTENT)) as url, pytest.raises(WeightsError, match=f"{algorithm} .* is expected"):
        find_or_download(_entry(url, **{algorithm: "0" * 32}))
    left = {path.name for path in (tmp_path / "models").iterdir()} - {".sam_vit_toy.pth.lock"}
    assert not left


def test_a_cut_connection_is_resumed_in_the_same_call():
    server = Server(CONTENT, cuts=2)
    with _serving(server) as url:
        path = find_or_download(_entry(url), downloader=Downloader(pause=0))
    assert path.read_bytes() == CONTENT
    assert server.asked[0] is None
    assert all(asked not in (None, "bytes=0-") for asked in server.asked[1:])


def test_a_cut_connection_is_resumed_by_a_later_call(tmp_path):
    server = Server(CONTENT, cuts=1)
    with _serving(server) as url:
        with pytest.raises(WeightsError, match="are kept"):
            find_or_download(_entry(url), downloader=Downloader(attempts=1))
        partial = tmp_path / "models" / "sam_vit_toy.pth.partial"
        kept = partial.stat().st_size
        assert 0 < kept < len(CONTENT)
        assert find_or_download(_entry(url)).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={kept}-"]
    assert not partial.exists()


def test_a_server_without_ranges_starts_anew():
    server = Server(CONTENT, ranges=False, cuts=1)
    with _serving(server) as url:
        assert find_or_download(_entry(url), downloader=Downloader(pause=0)).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_partial_file_with_all_its_bytes_or_more_ends_well(tmp_path, extra):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sam_vit_toy.pth.partial").write_bytes(CONTENT + extra)
    with _serving(Server(CONTENT)) as url:
        assert find_or_download(_entry(url), downloader=Downloader(pause=0)).read_bytes() == CONTENT


def test_a_partial_file_of_other_bytes_is_refused_and_the_next_try_is_good(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sam_vit_toy.pth.partial").write_bytes(b"x" * 1000)
    with _serving(Server(CONTENT)) as url:
        with pytest.raises(WeightsError, match="another digest"):
            find_or_download(_entry(url))
        assert find_or_download(_entry(url)).read_bytes() == CONTENT


def test_offline_the_url_the_digest_and_the_place_are_printed(tmp_path):
    with _serving(Server(CONTENT)) as url:
        pass  # and now nobody listens there
    entry = _entry(url)
    with pytest.raises(WeightsError) as caught:
        find_or_download(entry, downloader=Downloader(attempts=1))
    for part in (url, entry.sha256, str(tmp_path / "models" / "sam_vit_toy.pth")):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "it is empty"),
        (b"error 404: nothing here\n", "it is text that begins 'error 404: nothing here'"),
        (b"<html>\n<b>Sign in</b>", "it is text that begins '<html> <b>Sign in</b>'"),
        (b"PK\x03\x04" + bytes(50), "zip archive that is cut short"),
        (b"\x80\x02}q\x00X", "pickle that is cut short"),
        (b"\x93NUMPY\x01\x00", "begins with the bytes 93 4e 55"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_by_what_it_holds(tmp_path, content, found):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        resolve_weights("vit_tiny", str(tmp_path / "a.pth"))
    assert found in str(caught.value)


def test_of_bytes_that_never_came_nothing_is_said(tmp_path):
    server = Server(CONTENT, refuses=404)
    with _serving(server) as url, pytest.raises(WeightsError) as caught:
        find_or_download(_entry(url), downloader=Downloader(attempts=1))
    assert "kept" not in str(caught.value)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (429, 3), (503, 3)])
def test_a_server_that_says_no_is_asked_once_and_one_that_is_busy_again(status, asked):
    server = Server(CONTENT, refuses=status)
    with _serving(server) as url, pytest.raises(WeightsError, match=f"answered {status}"):
        find_or_download(_entry(url), downloader=Downloader(attempts=3, pause=0))
    assert len(server.asked) == asked


def test_a_folder_that_may_not_be_looked_into_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "sam_vit_toy.pth").write_bytes(CONTENT)
    real = Path.is_file

    def is_file(path):
        if path.parent == tmp_path / "models":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert find_or_download(_entry("http://127.0.0.1:9/sam_vit_toy.pth")).parent.name == "checkpoints"


@pytest.mark.parametrize("where", ["models", ".", "torch/hub/checkpoints"])
def test_a_file_that_is_there_is_used_without_the_network(tmp_path, where):
    path = tmp_path / where / "sam_vit_toy.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    assert find_or_download(_entry("http://127.0.0.1:9/sam_vit_toy.pth")).samefile(path)


def test_micro_sams_own_files_are_found():
    path = micro_sam_folder() / "toy"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert find_or_download(_entry("http://127.0.0.1:9/x")) == path


@pytest.mark.parametrize(
    "content", [CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])], ids=["short", "flip"]
)
def test_a_file_of_that_name_with_another_digest_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "sam_vit_toy.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"sam_vit_toy\.pth has the name of toy"):
        find_or_download(_entry("http://127.0.0.1:9/sam_vit_toy.pth"))
    assert (tmp_path / "sam_vit_toy.pth").read_bytes() == content


def test_every_published_model_has_a_digest_and_a_buildable_type():
    for name, entry in MODELS.items():
        assert entry.name == name
        assert entry.digests
        assert entry.model_type in ("vit_b", "vit_l", "vit_h")
        assert entry.url.startswith("https://")
    assert "vit_tiny" not in MODELS
    assert len({entry.file_name for entry in MODELS.values()}) == len(MODELS)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02" + content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WeightsError):
            resolve_weights("vit_tiny", "a.pth")
