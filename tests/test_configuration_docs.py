"""docs/configuration.md describes every key as it is in the code, and its examples load."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from appliance.config import MAX_CONFIG_BYTES, Config, check_config, load_config
from appliance.frame import MAX_TAG

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "configuration.md").read_text("utf-8")
EXAMPLES = [
    example
    for page in ("docs/configuration.md", "docs/wire.md", "README.md")
    for example in re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
]


def inner(kind: Any) -> Any:
    """Without None and without words for people."""
    if isinstance(kind, inspect.UnionType):
        (kind,) = [choice for choice in kind.types if not isinstance(choice, inspect.NoneType)]
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def sections(kind: inspect.StructType, path: str = "") -> Iterator[tuple[str, inspect.StructType, int | None]]:
    """(heading, its keys, how often it may be there) of every section, that of a list as ``[[path]]``."""
    for field in kind.fields:
        name, item = f"{path}{field.name}", inner(field.type)
        if isinstance(item, inspect.StructType):
            yield f"[{name}]", item, None
            yield from sections(item, f"{name}.")
        elif isinstance(item, inspect.VarTupleType) and isinstance(item.item_type, inspect.StructType):
            yield f"[[{name}]]", item.item_type, item.max_length


SECTIONS = {heading: (kind, most) for heading, kind, most in sections(inspect.type_info(Config))}


def described(kind: Any) -> str:
    """A type in the words of the page."""
    kind = inner(kind)
    match kind:
        case inspect.StrType(pattern=pattern):
            return "name" if pattern else "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(values))
        case inspect.IntType(ge=0, le=most) if most == MAX_TAG:
            return "tag"
        case inspect.IntType(ge=least, le=most):
            return f"{least} to {most}" if most else f"{least} or more"
        case inspect.FloatType(gt=least, le=most):
            return f"number over {least}, up to {most}"
        case inspect.VarTupleType(item_type=item):
            return f"list of {described(item)}" + ("s" if described(item) == "tag" else "")
        case inspect.DictType():
            return f"table of {described(kind.value_type)}s"
    raise AssertionError(kind)


def default_of(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "none"
    return f"`{msgspec.json.encode(value).decode()}`"


def keys_of(kind: inspect.StructType) -> dict[str, inspect.Field]:
    """Without those that are sections of their own."""
    return {
        field.name: field
        for field in kind.fields
        if not isinstance(getattr(inner(field.type), "item_type", None), inspect.StructType)
    }


def section_of_page(heading: str) -> str:
    _, found, rest = PAGE.partition(f"## `{heading}`\n")
    assert found, f"no section {heading}"
    return rest.partition("\n## ")[0]


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """(type, default) by key."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| .*\|$", section_of_page(heading), re.MULTILINE)
    return {key: (kind, default) for key, kind, default in found}


def test_the_page_has_every_section_and_no_other() -> None:
    assert re.findall(r"^## `(.*)`$", PAGE, re.MULTILINE) == list(SECTIONS)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_described_as_it_is(heading: str) -> None:
    kind, most = SECTIONS[heading]
    real = {name: (described(field.type), default_of(field)) for name, field in keys_of(kind).items()}
    assert rows(heading) == real
    assert most is None or f"At most {most}." in section_of_page(heading)


def test_the_size_of_the_file_is_told() -> None:
    assert f"at most {MAX_CONFIG_BYTES} bytes" in PAGE


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_load(text: str, tmp_path: Path) -> None:
    path = tmp_path / "appliance.toml"
    path.write_text(text)
    check_config(load_config(path))


def test_the_complete_example_has_every_key() -> None:
    example = tomllib.loads(EXAMPLES[0])
    for heading, (kind, _) in SECTIONS.items():
        value: Any = example
        for name in heading.strip("[]").split("."):
            value = value[name]
        tables = value if isinstance(value, list) else [value]
        assert {key for table in tables for key in table} >= keys_of(kind).keys(), heading


def test_a_missing_key_would_be_noticed() -> None:
    kind, _ = SECTIONS["[mqtt]"]
    assert len(keys_of(kind)) == len(msgspec.structs.fields(kind.cls)) > 0
    assert "peers" not in keys_of(SECTIONS["[zipper]"][0])
