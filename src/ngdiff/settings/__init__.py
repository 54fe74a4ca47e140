"""values given for settings -> checked ones; YAML read as data; the hash that names a request."""
