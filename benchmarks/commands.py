"""Turns a command line of embedcache into its figures: runs it in a process of its own and reads its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def figures(*words: object) -> dict[str, Any]:
    """The JSON object that ``embedcache WORDS --json`` prints; ends this program where it fails."""
    line = [sys.executable, "-m", "embedcache", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line[2:])}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
