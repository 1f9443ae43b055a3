"""What is wanted in many places: a zipper on loopback, the build of handlers, and a delegate for models."""

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from zipper_on_loopback import peers, ring, running  # noqa: F401 - fixtures

BUILD = Path(__file__).parent.parent / "handlers" / "build.py"
DELEGATE = Path(__file__).with_name("inference") / "delegate" / "counting_delegate.c"


def pytest_configure() -> None:
    """Processes that are started here take signals as at a terminal, also under nohup or a script's &."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a handler is not inherited, and what was ignored still is


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """handlers/build.py."""
    spec = importlib.util.spec_from_file_location("handlers_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The counting delegate, named as a delegate for a device called ``counting``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is not None:
        command = [compiler]
    elif importlib.util.find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "cc"]
    else:
        pytest.skip("needs a C compiler: install gcc or ziglang")
    path = tmp_path_factory.mktemp("delegate") / "libcounting_delegate.so.1"
    subprocess.run([*command, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, DELEGATE], check=True)
    return str(path)
