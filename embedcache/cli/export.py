"""The command that gives a trained decoder to other programs: export."""
