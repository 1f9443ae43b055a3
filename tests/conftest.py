"""A zipper on loopback is wanted in many places."""

from zipper_on_loopback import peers, ring, running  # noqa: F401 - fixtures
