"""The command that measures training: bench train."""
