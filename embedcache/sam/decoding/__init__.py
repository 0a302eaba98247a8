"""How the decoder computes, never what: prompt tokens, attention, upscaling, in several ways."""
