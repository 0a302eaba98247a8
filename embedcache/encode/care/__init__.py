"""What care of a store needs its volume and its encoder for: comparing, certifying, repairing."""
