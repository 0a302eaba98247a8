"""Steps of the optimiser, from where a run stands to its end, in one process or several."""
