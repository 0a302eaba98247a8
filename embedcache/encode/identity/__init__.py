"""Whether a store is the one that is asked for: words, look-ups, recorded pixels, changed sources."""
