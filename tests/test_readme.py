"""What the documents name exists: files, headings, make targets and variables, commands and their options."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.cli.commands import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
README = ROOT / "README.md"


def commands_of(group: click.Group, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command by its words, those of a group after its name, and its options."""
    for name, command in group.commands.items():
        yield f"{path}{name}", {option for item in command.params for option in item.opts}
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path}{name} ")


COMMANDS = dict(commands_of(cli))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, heading's anchor or nothing) of every link within the project."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [
        f"{path}#{anchor}"
        for path, anchor in links(page)
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path))
    ]
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ahead = [README]
    while ahead:
        page = ahead.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            for path, _ in links(page):
                ahead += path.glob("*.md") if path.is_dir() else [path]
    assert reached == set(PAGES)


def code_of(page: Path) -> str:
    """What is set as code, with continued lines joined."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"```(?:sh|bash|)\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return re.sub(r"\\\n\s*", " ", "\n".join([*blocks, *spans]))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_has_what_is_named(page: Path) -> None:
    for line in re.findall(r"^(?:\$ )?make\b(.*)$", code_of(page), re.MULTILINE):
        words = re.sub(r'="[^"]*"', "=", line).split()
        for word in words:
            variable, is_variable, _ = word.partition("=")
            if is_variable:
                assert re.search(rf"^{variable} \?=", MAKEFILE, re.MULTILINE), line
            else:
                assert re.search(rf"^{re.escape(word)}:.*## ", MAKEFILE, re.MULTILINE), line


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_and_options_exist(page: Path) -> None:
    for line in re.findall(r"^(?:\$ )?appliance +([a-z].*)$", code_of(page), re.MULTILINE):
        words = line.split()
        command = next((name for n in (3, 2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)
        assert command is not None, line
        assert {word for word in words if word.startswith("--")} <= COMMANDS[command] | {"--help"}, line


def test_options_in_the_readme_are_in_the_help() -> None:
    context = click.Context(cli)
    helps = "".join(command.get_help(click.Context(command, parent=context)) for command in cli.commands.values())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code_of(README))) - {"--editable"}
    assert {"--camera", "--config", "--lossless"} <= named
    assert {option for option in named if option not in helps} == set()


def test_the_front_door_is_named() -> None:
    text = README.read_text("utf-8")
    assert "make run FRAMES=300" in text
    assert "make test" in text
