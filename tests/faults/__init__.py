"""Faults, injected into the real commands: ``python -m tests.faults`` runs the table of ``docs/faults.md``."""
