"""A fleet's directory and its commands, a device's TUF client that reads it, and handlers to publish."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from appliance.cli.commands import cli
from appliance.fleet.repository import Fleet

PASSPHRASE = "four random words here"
MOTION = Path(__file__).parents[2] / "handlers" / "motion"


@dataclass(frozen=True)
class Desk:
    """Somebody with a fleet's directory."""

    directory: Path

    def run(self, *arguments: object, code: int = 0, env: Mapping[str, str] | None = None, input: str = "") -> str:
        """Run ``appliance fleet``; everything it says."""
        result = self.result(*arguments, env=env, input=input)
        assert result.exit_code == code, result.output
        return result.output

    def result(self, *arguments: object, env: Mapping[str, str] | None = None, input: str = "") -> Result:
        defaults = {"APPLIANCE_FLEET": str(self.directory), "APPLIANCE_FLEET_PASSPHRASE": PASSPHRASE}
        command = ["fleet", *map(str, arguments)]
        return CliRunner().invoke(cli, command, env={**defaults, **(env or {})}, input=input, catch_exceptions=False)

    def fleet(self) -> Fleet:
        return Fleet.open(self.directory)

    def key(self, name: str) -> Path:
        """A new private key beside the fleet's directory."""
        path = self.directory.parent / name
        self.run("key", "new", path)
        return path.with_suffix(".pem")

    def clone(self, name: str) -> "Desk":
        """As git would: without private keys."""
        place = self.directory.parent / name
        shutil.copytree(self.directory, place, ignore=shutil.ignore_patterns("*.pem", ".lock"))
        return Desk(place)


def new_fleet(directory: Path) -> Desk:
    desk = Desk(directory)
    desk.run("init", directory, "--name", "shops")
    return desk


def handler(directory: Path, name: str = "motion", version: str = "1.0.0", more: str = "") -> Path:
    """The handler of the checkout under another name and version."""
    place = directory / f"{name}-{version}{'x' if more else ''}"
    place.mkdir(exist_ok=True)
    shutil.copy(MOTION / "handler.wasm", place)
    text = (MOTION / "handler.toml").read_text()
    text = re.sub(r'^name = ".*"$', f'name = "{name}"', text, flags=re.MULTILINE)
    text = re.sub(r'^version = ".*"$', f'version = "{version}"', text, flags=re.MULTILINE)
    (place / "handler.toml").write_text(text + more)
    return place


class _Files(FetcherInterface):
    def __init__(self, fleet: Fleet) -> None:
        self._metadata = fleet.metadata_files()
        self._fleet = fleet

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if url.startswith("fleet:///metadata/"):
            if name not in self._metadata:
                raise DownloadHTTPError("not found", 404)
            yield self._metadata[name]
        else:
            yield (self._fleet.directory / "targets" / name.partition(".")[0]).read_bytes()


@dataclass
class Device:
    """What a device knows: the root it was given, and all that it has verified since."""

    directory: Path
    root: bytes

    @classmethod
    def of(cls, desk: Desk, directory: Path) -> "Device":
        directory.mkdir()
        return cls(directory, (desk.directory / "metadata" / "root.json").read_bytes())

    def copy(self, directory: Path) -> "Device":
        """Another that knows the same."""
        shutil.copytree(self.directory, directory, symlinks=True)
        return Device(directory, self.root)

    def refresh(self, fleet: Fleet) -> Updater:
        """Raises what ``tuf`` raises where it does not accept what there is."""
        updater = Updater(
            str(self.directory),
            "fleet:///metadata/",
            str(self.directory),
            "fleet:///targets/",
            fetcher=_Files(fleet),
            bootstrap=self.root,
        )
        updater.refresh()
        return updater

    def look(self, fleet: Fleet, target: str) -> TargetFile | None:
        return self.refresh(fleet).get_targetinfo(target)

    def accept_all(self, fleet: Fleet) -> None:
        """Everything that is desired is there, signed and whole."""
        updater = self.refresh(fleet)
        for target in fleet.targets():
            found = updater.get_targetinfo(target)
            assert found is not None
            updater.download_target(found)
            for name, assignment in fleet.desired(target).handlers.items():
                if assignment is not None:
                    index = updater.get_targetinfo(f"handlers/{name}/{assignment.version}.json")
                    assert index is not None
                    assert index.hashes["sha256"] == assignment.digest
                    updater.download_target(index)
        for digest, length in fleet.needed_content().items():
            assert fleet.content(digest).stat().st_size == length
