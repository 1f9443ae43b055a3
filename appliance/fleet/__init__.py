"""The operator's side of a fleet: keys, signed metadata in a directory, and what goes from there to the broker."""
