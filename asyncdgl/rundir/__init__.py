"""The run directory: what a run leaves, with one writer and one reader."""
