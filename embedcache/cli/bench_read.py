"""The command that measures reading: bench read."""
