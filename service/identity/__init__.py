"""Who may call: the access keys of a tenant as its admins see them, and identity tokens of pipelines."""
