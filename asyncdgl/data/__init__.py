"""Data sets: decoded once, kept in a cache, handed out as an endless stream of mini-batches."""
