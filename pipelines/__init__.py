"""Whole jobs as short scripts over the public API."""
