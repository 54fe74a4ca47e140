"""the world outside: files, text from strangers, cache, processes, terminals, events, this machine."""
