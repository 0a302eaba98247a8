"""Faults, injected into the real commands: ``python -m tests.faults`` runs the table, ``docs/faults.md`` shows it."""
