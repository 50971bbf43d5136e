"""Cliptune's service: studies over HTTP, a leased queue, workers that drive training processes."""
