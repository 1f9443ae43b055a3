"""What strangers wrote, made fit to be told. Pure."""


def printable(text: str) -> str:
    """``text`` on one line, with nothing in it that could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
