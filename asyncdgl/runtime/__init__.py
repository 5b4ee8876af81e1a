"""The runtimes: the same stages and buffers, run in one process or in many."""
