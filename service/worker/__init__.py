"""The worker: holds leases, drives training processes, writes results. It never trains and never imports torch."""
