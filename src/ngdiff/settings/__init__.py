"""what was asked for -> checked settings, and the hash that names the request."""
