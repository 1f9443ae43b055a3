"""What a module may import, export and hold. Each refusal names the rule and the import or the offset. Pure.

Limits of the sections are kept where they are read, in :mod:`.layout`.
"""

from collections.abc import Iterator

from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.admission import binary, limits
from appliance.sandbox.admission.binary import PAGE_BYTES, BrokenRuleError
from appliance.sandbox.admission.code import BLOCK, END, IF, LOOP, Instruction, instructions
from appliance.sandbox.admission.layout import Body, Layout

RESERVED = "appliance:"
"""How names that admission adds begin: no module may export such."""
METERING = "metering"
"""The module of ``usegas``: a guest that could import it would give itself gas, by using a negative amount."""
_MAX_SHOWN = 80
"""Characters of an import's name in a message."""


def check(layout: Layout, memory_bytes: int) -> None:
    """BrokenRuleError for what the sections show."""
    _check_imports(layout)
    for export in layout.exports:
        if export.name.startswith(RESERVED):
            raise BrokenRuleError(
                "reserved-name", f"it exports {_shown(export.name)}; names that begin with {RESERVED} are not its", export.at
            )
    memory, most = layout.memory, memory_bytes // PAGE_BYTES
    if memory and memory.pages > most:
        raise BrokenRuleError(
            "memory",
            f"it starts with {memory.pages * PAGE_BYTES} bytes of memory, over its limit of {most * PAGE_BYTES}",
            memory.at,
        )


def _check_imports(layout: Layout) -> None:
    for item in layout.imports:
        shown = _shown(f"{item.module}.{item.name}")
        if item.module == METERING:
            raise BrokenRuleError("import", f"it imports {shown}, which is the host's alone", item.at)
        wanted = SIGNATURES.get(item.module, {}).get(item.name)
        if wanted is None:
            raise BrokenRuleError("import", f"it imports {shown}, which no ABI has", item.at)
        found = layout.types[item.type].signature
        if found != wanted:
            raise BrokenRuleError("signature", f"it imports {shown} as {found}; it is {wanted}", item.at)


def _shown(name: str) -> str:
    """A name that the module's author chose, fit for a log."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= _MAX_SHOWN else f"{plain[:_MAX_SHOWN]}..."


def exported_functions(layout: Layout) -> dict[str, str]:
    """Name -> signature of the functions of its own that it exports; wasm3 finds no others."""
    return {
        export.name: layout.type_of(export.index).signature
        for export in layout.exports
        if export.kind == binary.FUNCTION_KIND and export.index >= len(layout.imports)
    }


def checked(layout: Layout, body: Body) -> Iterator[Instruction]:
    """The instructions of a valid body; BrokenRuleError where they are not to be run, or nested too deep."""
    blocks: list[bool] = []
    loops = 0
    for instruction in instructions(layout.data, body.code, body.end):
        at, opcode, argument, _ = instruction
        if opcode in (BLOCK, LOOP, IF):
            blocks.append(opcode == LOOP)
            loops += opcode == LOOP
            if len(blocks) > limits.MAX_BLOCK_DEPTH:
                raise BrokenRuleError(
                    "nesting", f"blocks are nested over {limits.MAX_BLOCK_DEPTH} deep at offset {at}", at
                )
            if loops > limits.MAX_LOOP_DEPTH:
                raise BrokenRuleError(
                    "loop-nesting", f"loops are nested over {limits.MAX_LOOP_DEPTH} deep at offset {at}", at
                )
            if opcode == LOOP and argument >= 0 and layout.types[argument].params:
                raise BrokenRuleError("loop-parameters", f"the loop at offset {at} has parameters", at)
        elif opcode == END and blocks:
            loops -= blocks.pop()
        yield instruction
