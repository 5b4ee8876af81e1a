"""The Ray runtime. Only files in this package import ray."""
