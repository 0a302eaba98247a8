"""Run SAM's frozen image encoder once over a volume, and train its decoder from the stored embeddings."""
