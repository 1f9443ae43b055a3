"""What a handler's author has: a new handler, its build, its trial off-device, what it needs and what it is."""
