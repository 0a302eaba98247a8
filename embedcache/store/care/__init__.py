"""Checking, mending, cleaning and comparing stores; nothing here encodes."""
