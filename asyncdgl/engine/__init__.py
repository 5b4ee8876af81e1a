"""The engines: a stage's turn, and the loops that give it to the stages."""
