"""Where embeddings are kept: by sizes, said in words, and as wished where that can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedcache.errors import ConfigError
from embedcache.store.reading.resident import choose_residence, decide_residence, free_ram

GIB = 1 << 30


def test_a_store_that_fits_is_kept_and_one_that_does_not_is_not() -> None:
    assert decide_residence(10 * GIB, 20 * GIB, None).where == "ram"
    assert decide_residence(10 * GIB + 1, 20 * GIB, None).where == "disk"
    assert decide_residence(10 * GIB, 20 * GIB, 28 * GIB).where == "gpu"
    assert decide_residence(10 * GIB, 20 * GIB, 26 * GIB).where == "ram"


def test_processes_of_one_machine_share_its_memory() -> None:
    assert decide_residence(10 * GIB, 40 * GIB, None, processes_here=2).where == "ram"
    assert decide_residence(10 * GIB, 40 * GIB, None, processes_here=3).where == "disk"


def test_the_sentence_names_the_bytes_and_the_place() -> None:
    sentence = decide_residence(10 * GIB, 40 * GIB, 80 * GIB).sentence
    for words in (
        "10.00 GiB of embeddings",
        "40.00 GiB of main memory",
        "80.00 GiB of the GPU",
        "on the GPU",
    ):
        assert words in sentence
    assert "disk" in decide_residence(10 * GIB, GIB, None).sentence


def test_the_wish_wins_as_far_as_there_is_room() -> None:
    assert decide_residence(15 * GIB, 20 * GIB, None, wish="ram").where == "ram"
    assert decide_residence(1, 20 * GIB, 20 * GIB, wish="disk").where == "disk"
    assert decide_residence(15 * GIB, GIB, 20 * GIB, wish="gpu").where == "gpu"
    for wish, room in (("ram", 20 * GIB), ("gpu", 15 * GIB)):
        with pytest.raises(ConfigError, match=rf"--resident is {wish}.*{21 * GIB} bytes.*\({room} bytes\)"):
            decide_residence(21 * GIB, 20 * GIB, 20 * GIB, wish=wish)


def test_a_gpu_is_not_wished_for_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"--resident is gpu.*7 bytes.*on a CPU, with 0 bytes"):
        choose_residence(7, torch.device("cpu"), wish="gpu")
    with pytest.raises(ConfigError, match="cellar"):
        choose_residence(7, torch.device("cpu"), wish="cellar")


def test_this_machine_has_memory_for_a_little() -> None:
    found = choose_residence(1 << 20, torch.device("cpu"))
    assert found.where == "ram"
    assert found.ram_free > 2 << 20
    assert found.gpu_free is None


def machine(folder: Path, membership: str, files: dict[str, str]) -> int:
    (folder / "meminfo").write_text("MemTotal: 64000 kB\nMemAvailable:   32000 kB\n")
    (folder / "membership").write_text(membership)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return free_ram(folder / "meminfo", folder / "membership", folder / "cgroup")


def test_a_container_has_what_its_limit_leaves_it(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/a/b\n", {}) == 32000 << 10
    limit = {"a/memory.max": "1000000\n", "a/memory.current": "700000\n", "a/b/memory.max": "max\n"}
    assert machine(tmp_path, "0::/a/b\n", limit) == 300000
    cached = {"a/memory.stat": "anon 5\nactive_file 100\ninactive_file 20\n"}
    assert machine(tmp_path, "0::/a/b\n", cached) == 300120
    older = {"memory/c/memory.limit_in_bytes": "5000\n", "memory/c/memory.usage_in_bytes": "9000\n"}
    assert machine(tmp_path, "5:cpu,memory:/c\n4:pids:/d\n", older) == 0
