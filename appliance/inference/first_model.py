"""The first model that a runtime runs in a process: ours, and harmless.

At its first model a runtime finds out about the CPU, for which it opens files under ``/proc`` and ``/sys``, and imports
what it needs of numpy. A process that is locked down cannot, and would go on with slower code.
"""

from base64 import b64decode

FIRST_MODEL = b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAABQAAAAYAEAAAMAAAAEAAAAPAAAADAAAAAYAAAACAAAAAQABgAEAAAAAAAGAAgABAAGAAAABAAA"
    "AAgAAAABAAAAAQAAAPz///8EAAQABAAAAAEAAAAQAAAADAAUABAADAAIAAQADAAAABAAAABAAAAARAAAAEgAAAABAAAAEAAAAAAACgAMAAAACAAEAAoA"
    "AAAIAAAADAAAAAEAAAACAAAAAgAAAAAAAAABAAAAAQAAAAIAAAABAAAAAAAAAAMAAAB0AAAAPAAAAAQAAACk////DAAAAAMAAAAQAAAABAAAAGVjaG8A"
    "AAAAAgAAAAEAAAABAAAADAAUABAADwAIAAQADAAAABAAAAACAAAAAAAAAhAAAAAFAAAAc2hhcGUAAAABAAAAAgAAAAwAEAAMAAAACAAEAAwAAAAMAAAA"
    "AQAAABAAAAAHAAAAcGljdHVyZQAEAAAAAQAAAAEAAAABAAAAAQAAAAEAAAAQAAAADAAMAAsAAAAAAAQADAAAABYAAAAAAAAW"
)
"""A TFLite model that reshapes one float32 to 1x1; ``echo`` in ``tests/inference/tiny_models.py`` makes it. Of float32,
because XNNPACK, which asks most about the CPU, leaves quantised models alone in tflite-runtime."""
