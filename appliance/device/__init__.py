"""This device: logging, its state directory, its processes' memory, its LEDs."""
