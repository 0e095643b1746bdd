"""Search within one network that holds all of a space's cells: their weights are shared."""
