"""The door: click commands that parse, call one function of the package, and print."""

from embedcache.cli.app import main

__all__ = ["main"]
