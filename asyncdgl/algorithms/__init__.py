"""The algorithms: what learns, what stands between, and whose turn it is in `sim`."""
