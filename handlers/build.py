"""Build the handlers' WebAssembly modules: `python handlers/build.py [--check] [NAME or DIRECTORY ...]`.

The committed modules are exactly what these toolchains make of the sources on any machine; `--check` builds
into a temporary directory and compares the bytes. A toolchain that is not installed is a skip with a reason.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HANDLERS = Path(__file__).resolve().parent
sys.path.insert(0, str(HANDLERS.parent))  # of this checkout, wherever it is started and whatever is installed

from appliance.author.building import compile_handler, replace  # noqa: E402
from appliance.author.compilers import (  # noqa: E402
    BuildError,
    ToolchainMissingError,
    compile_rust,
    debian_rustc,
)

MODULE = "handler.wasm"


def directories() -> list[Path]:
    """The handlers of this repository."""
    return sorted(path.parent for path in HANDLERS.glob("*/handler.toml"))


def build(directory: Path, module: Path) -> None:
    """Compile the handler in ``directory`` into the file ``module``, to the same bytes on every machine.

    Raises ToolchainMissingError or BuildError; a warning is one.
    """
    if (directory / "handler.rs").is_file():
        warnings = compile_rust(directory, module, debian_rustc())
    else:
        warnings = compile_handler(directory, module)
    if warnings:
        raise BuildError(f"{directory}: it builds with warnings\n{warnings}")


def _update(directory: Path, *, check: bool) -> bool:
    """Build one handler and say what came of it; False where it failed or differs."""
    with tempfile.TemporaryDirectory() as work:
        fresh = Path(work) / MODULE
        try:
            build(directory, fresh)
        except ToolchainMissingError as reason:
            print(f"{directory.name}: skipped: {reason}")
            return True
        except BuildError as error:
            print(f"{directory.name}: failed\n{error}", file=sys.stderr)
            return False
        made = fresh.read_bytes()
    module = directory / MODULE
    same = module.is_file() and module.read_bytes() == made
    if check:
        print(f"{directory.name}: {'same' if same else f'differs from {MODULE}; run handlers/build.py'}")
        return same
    if not same:
        replace(module, made)
    print(f"{directory.name}: {len(made)} bytes{', unchanged' if same else ''}")
    return True


def _directory(name: str) -> Path:
    path = Path(name)
    return path.resolve() if (path / "handler.toml").is_file() else HANDLERS / name


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Build the handlers' WebAssembly modules.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a committed module differs")
    parser.add_argument("handler", nargs="*", help="name of a handler here, or a directory; all when left out")
    arguments = parser.parse_args()
    chosen = [_directory(name) for name in arguments.handler] or directories()
    unknown = [path for path in chosen if not (path / "handler.toml").is_file()]
    if unknown:
        parser.error(f"no handler.toml in {', '.join(map(str, unknown))}")
    results = [_update(path, check=arguments.check) for path in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
