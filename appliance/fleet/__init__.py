"""The operator's side of deployment: what is signed, how it gets to the broker, and what devices make of it."""
