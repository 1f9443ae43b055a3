from zipper_on_loopback import ring, running  # noqa: F401 - fixtures
