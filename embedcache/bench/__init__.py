"""This machine's figures beside the stock way, measured in one run; its processes are started by module name."""
