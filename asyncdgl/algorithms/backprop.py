"""Backpropagation: the same network trained end to end, with the last stage's head. A baseline."""

from __future__ import annotations

from asyncdgl.algorithms.base import Algorithm
from asyncdgl.algorithms.sync_dgl import in_turn

backprop = Algorithm(order=in_turn, in_one=True)
