from zipper_on_loopback import peers, ring, running  # noqa: F401 - fixtures
