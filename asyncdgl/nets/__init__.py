"""The paper's networks: blocks, auxiliary networks, and the cut of a network into stages."""
