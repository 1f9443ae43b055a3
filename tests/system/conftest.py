from whole import broker, start  # noqa: F401 - fixtures
