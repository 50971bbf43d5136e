"""Choosing clip settings and judging them: proposals, pruning, statistics, recommendation."""
