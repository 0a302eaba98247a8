"""What comes next, read, asked and moved to the device before a step wants it."""
