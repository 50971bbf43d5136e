"""The formats a report of checks is written in, one file each."""
