"""What learns: a stage, its losses, and its evaluation."""
