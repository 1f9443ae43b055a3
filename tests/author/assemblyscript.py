"""Where the compiler of AssemblyScript is, for tests: `make test` installs it where there is npm."""

import shutil
from pathlib import Path

import pytest

from appliance.author.beginning import TEMPLATES
from appliance.author.compilers import SDK

NODE_MODULES = Path(__file__).parents[2] / ".asc" / "node_modules"


def with_compiler(directory: Path) -> Path:
    """``directory``, as `npm install` would have made it; skips where there is no compiler."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    if not (NODE_MODULES / "assemblyscript").is_dir():
        pytest.skip("needs the AssemblyScript compiler: make .asc/node_modules")
    (directory / "node_modules").symlink_to(NODE_MODULES)
    return directory


def with_assemblyscript(source: Path, directory: Path) -> Path:
    """A copy of a guest's source with the SDK, the compiler, and the compiler's settings of a new handler."""
    shutil.copytree(source, directory)
    shutil.copytree(SDK / "assemblyscript", directory / "sdk")
    shutil.copy(TEMPLATES / "assemblyscript" / "asconfig.json", directory)
    return with_compiler(directory)
