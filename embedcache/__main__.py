"""`python -m embedcache` is the `embedcache` command."""

from embedcache.cli import main

main()
