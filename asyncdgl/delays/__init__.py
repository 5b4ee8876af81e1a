"""Delays of stages and links: their laws, the profiles that name them, and the profile clock."""
