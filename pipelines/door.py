"""Runs a pipeline from the command line: our errors become their message and exit code, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

import embedcache as ec


def run(main: Callable[[], object]) -> int:
    """Call a pipeline's ``main`` and return the exit code."""
    try:
        main()
    except ec.EmbedcacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0
