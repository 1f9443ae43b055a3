"""A new handler: a directory that builds at once, from the templates of this package."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from appliance.author.compilers import SDK
from appliance.errors import ConfigError
from appliance.frame import is_name

Language = Literal["c", "rust", "assemblyscript"]
TEMPLATES = Path(__file__).with_name("templates")
"""``common`` for all, and a directory for each language."""
COMMON = "common"
_HIDDEN = {"gitignore": ".gitignore"}
"""A package has no hidden files."""

_WORDS: Mapping[Language, Mapping[str, str]] = {
    "c": {
        "source": "handler.c",
        "prepare": "",
        "needs": "The compiler is ziglang, from PyPI: the extra `author` of the appliance brings it.",
    },
    "rust": {
        "source": "handler.rs",
        "prepare": "",
        "needs": "The compiler is any rustc from 1.63 on with `rustup target add wasm32-unknown-unknown`, or Debian's: "
        "`apt-get install rustc libstd-rust-dev-wasm32 lld-14`.",
    },
    "assemblyscript": {
        "source": "handler.ts",
        "prepare": "npm install                                 # the compiler, once\n",
        "needs": "The compiler runs on Node.js 20 or later, and comes with `npm install`.",
    },
}
"""What the templates' words in double braces stand for."""


def begin(name: str, language: Language, directory: Path) -> list[Path]:
    """Write the directory of a new handler; what was written. ConfigError where that cannot be.

    Where it fails or is interrupted, nothing of it is left.
    """
    if not is_name(name):
        raise ConfigError(
            f"{name!r} is no name for a handler: lower-case letters and digits, with - and _ between them"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is there already, and not empty; choose another with --dir")
    words = {"name": name, **_WORDS[language]}
    written = []
    try:
        with ExitStack() as undo:
            for path, text in _files(language):
                target = directory / path
                _make_directory(target.parent, undo)
                undo.callback(target.unlink, missing_ok=True)  # before it is there: half a file goes, too
                target.write_text(_filled(text, words), "utf-8")
                written.append(target)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    return written


def next_steps(language: Language, directory: Path) -> list[str]:
    """Commands to go on with."""
    prepare = [f"npm install --prefix {directory}"] if language == "assemblyscript" else []
    return [
        *prepare,
        f"appliance handler build {directory}",
        f"appliance handler test {directory} picture.jpg",
    ]


def _files(language: Language) -> Iterator[tuple[Path, str]]:
    """(path within the new directory, template)."""
    for part in (COMMON, language):
        for path in _below(TEMPLATES / part):
            yield path.with_name(_HIDDEN.get(path.name, path.name)), (TEMPLATES / part / path).read_text("utf-8")
    for path in _below(SDK / language):
        yield "sdk" / path, (SDK / language / path).read_text("utf-8")


def _make_directory(directory: Path, undo: ExitStack) -> None:
    """With those above it; ``undo`` removes what was made, unless somebody else has put something there."""
    if directory.exists():
        return
    _make_directory(directory.parent, undo)
    directory.mkdir()
    undo.callback(_remove_empty, directory)


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _below(directory: Path) -> list[Path]:
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def _filled(template: str, words: Mapping[str, str]) -> str:
    for word, text in words.items():
        template = template.replace("{{" + word + "}}", text)
    return template
