"""What the body of a function may hold. Each refusal names the offset. Pure."""

from collections.abc import Iterator

from appliance.sandbox.admission import limits
from appliance.sandbox.admission.binary import BrokenRuleError
from appliance.sandbox.admission.code import BLOCK, END, IF, LOOP, Instruction, instructions
from appliance.sandbox.admission.layout import Body, Layout


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
