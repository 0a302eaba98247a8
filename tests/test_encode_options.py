"""Options refuse what contradicts itself, and sizes are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.options import READ_MEMORY, EncodeOptions, options_from
from embedcache.encode.sizes import parse_bytes, readable_bytes
from embedcache.errors import ConfigError


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"attention": "flesh"}, "--attention flesh"),
        ({"compile": "maybe"}, "--compile maybe"),
        ({"threads": 0}, "--threads 0"),
        ({"workers": 0}, "--workers 0"),
        ({"read_memory": -1}, "--read-memory -1"),
        ({"read_memory": "two"}, "--read-memory two"),
        ({"workers": 2, "num_parts": 2, "part_id": 0}, "--workers was given beside --num-parts"),
        ({"workers": 2, "profile": "trace.json"}, "--profile was given beside --workers"),
        ({"scheduler": "tcp://a:1", "profile": "trace.json"}, "--profile was given beside --scheduler"),
        (
            {"scheduler": "tcp://a:1", "num_parts": 2, "part_id": 0},
            "--scheduler was given beside --num-parts",
        ),
        ({"scheduler": "nonsense"}, "--scheduler nonsense: expected the address"),
        ({"profile": "."}, "--profile . is a folder"),
        ({"profile": "no/such/folder/trace.json"}, "no such folder"),
        ({"scheduler": "tcp://a:1", "workers": 2}, "--workers was given beside --scheduler"),
    ],
)
def test_what_no_machine_can_do_is_refused_by_the_options_name(wishes, named):
    with pytest.raises(ConfigError, match=named):
        options_from("v", wishes)


def test_a_single_part_leaves_room_for_workers():
    """In a SLURM array, ``--num-parts 1 --part-id 0`` is how the whole is asked for."""
    assert options_from("v", {"workers": 2, "num_parts": 1, "part_id": 0}).workers == 2


@given(count=st.integers(0, 1 << 50))
def test_bytes_in_digits_are_themselves(count):
    assert parse_bytes(count, "--x") == parse_bytes(f"{count}B", "--x") == count


@given(count=st.integers(0, 1 << 50))
def test_bytes_written_for_people_are_read_back_but_for_rounding(count):
    assert abs(parse_bytes(readable_bytes(count), "--x") - count) <= 0.05 * count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 << 30),
        ("2 GB", 2 * 10**9),
        ("4g", 4 << 30),
        ("1.5KiB", 1536),
        ("0", 0),
        ("500mb", 5 * 10**8),
    ],
)
def test_units_are_what_they_are_defined_to_be(text, count):
    assert parse_bytes(text, "--x") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 parsecs", "1e9", "2 GiBit"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="--x"):
        parse_bytes(text, "--x")


def test_the_default_read_memory_is_what_the_command_line_shows():
    assert EncodeOptions("v").read_memory == READ_MEMORY == parse_bytes("2GiB", "--read-memory")
