"""What a module may import and export. Each refusal names the rule and the import. Pure.

Limits of the sections are kept where they are read, in :mod:`.layout`, that of the memory where it is rewritten, in
:mod:`.rewrite`, and those of code in :mod:`.bodies`.
"""

from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.admission.binary import BrokenRuleError
from appliance.sandbox.admission.layout import Layout
from appliance.sandbox.admission.rewrite import METERING, RESERVED

_MAX_SHOWN = 80
"""Characters of an import's name in a message."""


def check(layout: Layout) -> None:
    """BrokenRuleError for what the sections show."""
    _check_imports(layout)
    for export in layout.exports:
        if export.name.startswith(RESERVED):
            raise BrokenRuleError(
                "reserved-name",
                f"it exports {_shown(export.name)}; names that begin with {RESERVED} are reserved",
                export.at,
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
