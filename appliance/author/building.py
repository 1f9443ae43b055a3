"""From a handler's source to its module, whatever the language."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.author.compilers import BuildError, compile_assemblyscript, compile_c, compile_rust

Compiler = Callable[[Path, Path], str]
"""(directory of the source, file that the module is written into) -> warnings."""
SOURCES: dict[str, Compiler] = {
    "handler.c": compile_c,
    "handler.rs": compile_rust,
    "handler.ts": compile_assemblyscript,
}


@dataclass(frozen=True, slots=True)
class Built:
    """What came of a build."""

    size: int
    changed: bool
    """The module is another one now than before."""
    warnings: str


def source_of(directory: Path) -> str | None:
    """The source that a handler's module is made of; None where its module came ready made."""
    return next((name for name in SOURCES if (directory / name).is_file()), None)


def compile_handler(directory: Path, module: Path) -> str:
    """Compile the source in ``directory`` into the file ``module``; the compiler's warnings.

    Raises ToolchainMissingError, or BuildError: with what the compiler said, and where there is no source.
    """
    source = source_of(directory)
    if source is None:
        raise BuildError(f"{directory}: none of {', '.join(SOURCES)} is there")
    return SOURCES[source](directory, module)


def build(directory: Path, name: str, compile: Compiler = compile_handler) -> Built:
    """Make the module ``name`` of a handler's directory anew; what was there stays where that fails."""
    module = directory / name
    with tempfile.TemporaryDirectory() as work:
        fresh = Path(work) / name
        warnings = compile(directory, fresh)
        made = fresh.read_bytes()
    changed = not (module.is_file() and module.read_bytes() == made)
    if changed:
        replace(module, made)
    return Built(len(made), changed, warnings.strip())


def replace(path: Path, data: bytes) -> None:
    """Write by rename, so that a running appliance never reads half a module."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
