"""How large a module may be, part by part. Pure figures; :mod:`.layout` and :mod:`.rules` keep modules to them.

wasm3's own limits are higher or absent: it takes 100,000 functions, and allocates for all of them before it looks at
the first.
"""

MAX_TYPES = 4096
MAX_PARAMETERS = 64
"""Of a function type. wasm3 takes 1000, an ABI 9 at most."""
MAX_RESULTS = 16
MAX_IMPORTS = 256
MAX_FUNCTIONS = 20_000
MAX_GLOBALS = 4096
MAX_EXPORTS = 4096
MAX_EXPORT_NAMES = 3
"""Of one function: wasm3 keeps three names (d_m3MaxDuplicateFunctionImpl), and finds it by no other."""
MAX_TABLE_ELEMENTS = 65_536
"""Of the table, and of all segments together. wasm3's limit is 100,000."""
MAX_ELEMENT_SEGMENTS = 4096
MAX_DATA_SEGMENTS = 65_536
MAX_LOCALS = 1900
"""Of a function, with its parameters: wasm3 compiles none whose stack is over 2000 values."""
MAX_LOCAL_GROUPS = MAX_LOCALS
MAX_BODY_BYTES = 1 << 20
"""Of one function. Gas is charged as an i32: a body has no more instructions than bytes."""
MAX_BLOCK_DEPTH = 2048
"""Blocks, loops and conditions within each other. LLVM makes one block for each case of a switch, so that interpreters
have hundreds; wasm3 compiled 30,000 in a stack of 64 MiB."""
MAX_LOOP_DEPTH = 64
"""Loops within each other: each is a frame on wasm3's C stack, and so is each call. Recursion within 160 loops ended
in a trap in 64 MiB, within 200 in a crash. Compilers were seen to make 4."""
