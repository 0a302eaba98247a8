"""What is true of tiles: labels, how they lie over a volume, and which of them are held out."""
