"""Clip values in config files: found without running anything, judged, and rewritten one token at a time."""
