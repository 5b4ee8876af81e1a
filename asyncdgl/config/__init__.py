"""The configuration of a run: what was asked, and what it means."""
