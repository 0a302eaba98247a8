"""Reading embeddings: what is checked when, in which order, where they are kept, who fetches them."""
