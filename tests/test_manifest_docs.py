"""docs/handlers.md has every key of a manifest, docs/handler-abi.md every bound and rule of modules, as they are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect
from test_configuration_docs import default_of, inner

from appliance import manifest
from appliance.frame import MAX_TAG
from appliance.sandbox import spec
from appliance.sandbox.abi import ABIS
from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.admission import admit, binary, limits

ROOT = Path(__file__).parent.parent
HANDLERS = (ROOT / "docs" / "handlers.md").read_text("utf-8")
ABI = (ROOT / "docs" / "handler-abi.md").read_text("utf-8")
WORDS = {
    manifest.Name: "name",
    manifest.FileName: "file name",
    manifest.Version: "version",
    manifest.ValuePath: "path",
    manifest.DeviceClass: "class",
}
PATTERNS = {msgspec.json.schema(kind)["pattern"]: word for kind, word in WORDS.items()}
BOUNDS = {
    "bytes of the module": manifest.MAX_MODULE_BYTES,
    "bytes of it with gas charged, for wasm3": limits.MAX_REWRITTEN_BYTES,
    "bytes of a name": binary.MAX_NAME_BYTES,
    "types": limits.MAX_TYPES,
    "parameters of a type": limits.MAX_PARAMETERS,
    "results of a type": limits.MAX_RESULTS,
    "imports": limits.MAX_IMPORTS,
    "functions": limits.MAX_FUNCTIONS,
    "globals": limits.MAX_GLOBALS,
    "exports": limits.MAX_EXPORTS,
    "names of one exported function": limits.MAX_EXPORT_NAMES,
    "elements of the table": limits.MAX_TABLE_ELEMENTS,
    "segments of the table": limits.MAX_ELEMENT_SEGMENTS,
    "segments of data": limits.MAX_DATA_SEGMENTS,
    "locals of a function, parameters included": limits.MAX_LOCALS,
    "bytes of a function's body": limits.MAX_BODY_BYTES,
    "blocks within each other": limits.MAX_BLOCK_DEPTH,
    "loops within each other": limits.MAX_LOOP_DEPTH,
}
"""In the words of the page."""


def keys(kind: inspect.StructType, path: str = "") -> Iterator[tuple[str, inspect.Field]]:
    """Every key by its path; those of a table within, or of a list of tables, follow its name."""
    for field in kind.fields:
        item = inner(field.type)
        within = inner(item.item_type) if isinstance(item, inspect.VarTupleType) else item
        if isinstance(within, inspect.StructType):
            yield from keys(within, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", field


def described(kind: Any) -> str:
    """A type in the words of the page."""
    kind = inner(kind)
    match kind:
        case inspect.StrType(pattern=pattern):
            return PATTERNS[pattern] if pattern else "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(values))
        case inspect.IntType(ge=0, le=most) if most == MAX_TAG:
            return "tag"
        case inspect.IntType(ge=least, le=most):
            return f"{least} to {most}"
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            bounds = f", {least} to {most}" if least else f", up to {most}" if most else ""
            return f"list of {described(item)}s{bounds}"
        case inspect.DictType(value_type=value):
            return f"table of {described(value)}s"
    raise AssertionError(kind)


def test_the_page_has_every_key_of_a_manifest_as_it_is() -> None:
    kind = inspect.type_info(manifest.Manifest)
    assert isinstance(kind, inspect.StructType)
    real = {path: (described(field.type), default_of(field)) for path, field in keys(kind)}
    table = HANDLERS.partition("## The manifest\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| .*\|$", table, re.MULTILINE)
    assert {path: (words, default) for path, words, default in rows} == real
    assert {"name", "emits.publish", "limits.gas", "command.arguments"} <= real.keys()


@pytest.mark.parametrize(
    "words",
    [
        f"at most {manifest.MAX_MANIFEST_BYTES >> 10} KiB",
        f"the module, up to {manifest.MAX_MODULE_BYTES >> 20} MiB",
        f"At most {spec.MAX_MODELS} |",
        f"up to {spec.MAX_LABELS} lines and {manifest.MAX_LABELS_BYTES >> 10} KiB",
        f"up to {manifest.MAX_FILES_BYTES >> 20} MiB together",
        f"up to {spec.MAX_SETTINGS}, of {spec.MAX_SETTING_BYTES} bytes",
    ],
)
def test_what_no_type_says_is_on_the_page(words: str) -> None:
    assert words in HANDLERS


def test_the_bounds_of_modules_are_those_of_admission() -> None:
    rows = re.findall(r"^\| (.*) \| (\d+) \| (`.*`) \|$", ABI, re.MULTILINE)
    assert {what: int(most) for what, most, _ in rows} == BOUNDS
    named = {name for name in vars(limits) if name.startswith("MAX_")}
    told = {name for name in named if getattr(limits, name) in BOUNDS.values()}
    assert named == told


def test_the_rules_of_modules_are_those_of_admission() -> None:
    directory = Path(limits.__file__).parent
    text = "".join(path.read_text("utf-8") for path in directory.glob("*.py"))
    raised = set(re.findall(r'(?:BrokenRuleError|_FailedError)\(\s*"([a-z-]+)"', text))
    raised |= set(re.findall(r'\.count\([^()]*(?:\([^()]*\))?[^()]*"([a-z-]+)"\)', text))
    raised |= {"feature", "invalid", "parameters", "results"}  # chosen, or made of what they are about
    section = ABI.partition("## The module\n")[2].partition("\n## ")[0]
    assert {"memory", "size", "crashed"} <= raised
    assert raised <= set(re.findall(r"`([a-z-]+)`", section))
    assert f"`deadline` ({admit.DEADLINE_SECONDS:g} s)" in section


def test_every_convention_and_import_module_is_named() -> None:
    head = ABI.partition("## The module\n")[0]
    rows = re.findall(r"^\| (`.*?`) \| ", head, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"abi"}
    assert named == ABIS.keys() | SIGNATURES.keys()
