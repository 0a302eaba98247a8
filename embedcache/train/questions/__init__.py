"""What a tile is asked and what is true of it: objects, prompts, targets, drawn alike by everybody."""
