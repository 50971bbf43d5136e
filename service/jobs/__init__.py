"""The queue: leases with fences on the jobs table, and what is retried when."""
