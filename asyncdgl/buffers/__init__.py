"""Replay buffers between the stages: samplers, the link that delays entries, codecs."""
