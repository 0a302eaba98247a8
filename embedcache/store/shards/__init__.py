"""The embeddings' own bytes: shard files, scales, and committing them."""
