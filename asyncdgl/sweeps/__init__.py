"""Sweeps: grids of runs, how they are made, and their tables."""
