"""Questions put to a decoder: the paper's rounds, losses, and figures of the answers."""
