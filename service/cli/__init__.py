"""The command line. Every command imports what it needs inside its function, so that `--help` is immediate."""
