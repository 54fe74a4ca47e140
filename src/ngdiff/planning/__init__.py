"""a request -> whether it can run, what it would take, and what to switch on where it does not fit."""
