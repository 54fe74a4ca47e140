"""the world outside: files written whole, text that nothing acts on, terminals, events, this machine."""
