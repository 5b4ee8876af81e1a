"""Asynchronous Decoupled Greedy Learning (Belilovsky, Eickenberg, Oyallon, ICML 2020) in real processes.

Importing the package loads neither torch nor ray, so that the command line answers at once.
"""

__version__ = "0.2.0"
