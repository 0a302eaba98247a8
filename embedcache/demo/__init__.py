"""The whole path on a made-up scroll or on made-up infrared photographs."""

from embedcache.demo.demo import run_demo

__all__ = ["run_demo"]
