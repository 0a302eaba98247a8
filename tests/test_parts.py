"""What parts.py promises: segment-anything's own classes, with or without torchvision, and no trace elsewhere."""

import contextlib
import importlib
import io
import os
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
import torch

from embedcache.errors import WeightsError
from embedcache.sam import parts


def _run(code: str, *path: Path) -> str:
    """What ``code`` prints in a process in which neither this package nor segment-anything is imported yet.

    A fork that forgets them: a new interpreter would spend seconds on importing torch.
    """
    done, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done)
        printed, status = io.StringIO(), 1
        try:
            for name in list(sys.modules):
                if name.partition(".")[0] in ("embedcache", "segment_anything", "torchvision"):
                    del sys.modules[name]
            sys.path[:0] = [str(folder) for folder in path]
            importlib.invalidate_caches()
            with contextlib.redirect_stdout(printed):
                exec(textwrap.dedent(code), {"sys": sys})
            status = 0
        except BaseException:
            printed.write(traceback.format_exc())
        finally:
            os.write(report, printed.getvalue().encode()[-4000:])
            os._exit(status)
    os.close(report)
    with os.fdopen(done) as stream:
        said = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said
    return said


def _torchvision(folder: Path, code: str) -> Path:
    """A torchvision that has what segment_anything's __init__ imports, or that fails as a broken one does."""
    (folder / "torchvision" / "transforms").mkdir(parents=True)
    (folder / "torchvision" / "ops").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    (folder / "torchvision" / "transforms" / "__init__.py").write_text("")
    (folder / "torchvision" / "transforms" / "functional.py").write_text("resize = to_pil_image = None")
    (folder / "torchvision" / "ops" / "__init__.py").write_text("")
    (folder / "torchvision" / "ops" / "boxes.py").write_text("batched_nms = box_area = None")
    return folder


def test_the_stand_in_does_not_stay():
    out = _run(
        """
        sys.modules["torchvision"] = None  # as if it were not installed
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
        import embedcache.sam.parts
        print("segment_anything" in sys.modules, "segment_anything.modeling" in sys.modules)
        """
    )
    assert out.split() == ["False", "True"]


def test_a_broken_torchvision_does_no_harm(tmp_path):
    folder = _torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    assert _run("from embedcache.sam.parts import build\nprint(len(build('vit_tiny').state_dict()))", folder)


def test_a_working_torchvision_means_the_normal_import(tmp_path):
    folder = _torchvision(tmp_path, "")
    out = _run(
        """
        import embedcache.sam.parts as parts
        import segment_anything
        print(segment_anything.modeling.MaskDecoder is parts.modeling.MaskDecoder)
        print(segment_anything.SamPredictor.__name__)
        """,
        folder,
    )
    assert out.split() == ["True", "SamPredictor"]


def test_a_later_import_of_segment_anything_runs_its_init_and_shares_its_classes(tmp_path):
    folder = _torchvision(tmp_path, "")
    out = _run(
        f"""
        sys.path.remove({str(folder)!r})
        import embedcache.sam.parts as parts
        sys.path.insert(0, {str(folder)!r})
        import importlib; importlib.invalidate_caches()
        import segment_anything
        from segment_anything import sam_model_registry, SamPredictor
        from segment_anything.modeling import MaskDecoder
        print(MaskDecoder is parts.modeling.MaskDecoder)
        """,
        folder,
    )
    assert out.split() == ["True"]


def test_built_parts_are_those_of_segment_anything():
    out = _run(
        """
        import importlib, types, torch
        from embedcache.sam import parts
        stand_in = types.ModuleType("segment_anything")
        stand_in.__path__ = importlib.util.find_spec("segment_anything").submodule_search_locations
        sys.modules["segment_anything"] = stand_in
        build_sam = importlib.import_module("segment_anything.build_sam")
        shapes = lambda model: {name: value.shape for name, value in model.state_dict().items()}
        windows = lambda model: [block.window_size for block in model.blocks]
        for model_type in ("vit_b", "vit_l", "vit_h"):
            ours = parts.build(model_type)
            with torch.device("meta"):
                stock = getattr(build_sam, f"build_sam_{model_type}")()
            print(shapes(ours) == shapes(stock))
            print(windows(ours["image_encoder"]) == windows(stock.image_encoder))
            print(all(str(ours[name]) == str(getattr(stock, name)) for name in ours))
        """
    )
    assert out.split() == ["True"] * 9


def test_vit_tiny_has_a_windowed_and_a_global_block():
    encoder = parts.build_encoder("vit_tiny")
    assert [block.window_size for block in encoder.blocks] == [14, 0]
    assert encoder.pos_embed.shape == (1, 64, 64, 192)


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    parts.build("vit_tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_type_is_named_with_the_known_ones():
    with pytest.raises(WeightsError, match="vit_x") as caught:
        parts.build_encoder("vit_x")
    assert "vit_b" in (caught.value.hint or "")
