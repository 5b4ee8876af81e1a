"""What a run will be on this machine: everything that was left open, decided and measured."""
