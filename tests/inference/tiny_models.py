"""Models of a few hundred bytes, so that tests know every byte that goes in and comes out."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from appliance.inference.model import ModelSpec

TYPES = {"uint8": 3, "int8": 9, "float32": 0, "int32": 2}
RESHAPE, GATHER, CUSTOM = 22, 36, 32
Shape = Sequence[int]
Save = Callable[..., ModelSpec]
"""What the fixture ``save`` is: the bytes of a model, its file's name and fields of the spec."""


def echo(shape: Shape = (1, 8, 8, 3), dtype: str = "uint8") -> bytes:
    """Its one output is its one input, flattened."""
    size = 1
    for side in shape:
        size *= side
    new_shape = _tensor("shape", "int32", [2], struct.pack("<2i", 1, size))
    tensors = [_tensor("picture", dtype, shape), new_shape, _tensor("echo", dtype, [1, size])]
    return _model(tensors, RESHAPE, inputs=[0], operands=[0, 1], output=2)


def pick() -> bytes:
    """Answers with 10, 20, 30 or 40 for the int32 0 to 3; fails when it is run on another number."""
    values = _tensor("values", "int32", [4], struct.pack("<4i", 10, 20, 30, 40))
    tensors = [values, _tensor("index", "int32", [1]), _tensor("picked", "int32", [1])]
    return _model(tensors, GATHER, inputs=[1], operands=[0, 1], output=2)


def custom(name: str, shape: Shape = (1, 8, 8, 3)) -> bytes:
    """Consists of one custom operator: the only one a model has that the Edge TPU compiler made."""
    tensors = [_tensor("picture", "uint8", shape), _tensor("out", "uint8", [1, 4])]
    return _model(tensors, CUSTOM, inputs=[0], operands=[0], output=1, custom_name=name)


Tensor = tuple[Any, bytes]


def _tensor(name: str, dtype: str, shape: Shape, data: bytes = b"") -> Tensor:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape = name, TYPES[dtype], list(shape)
    return tensor, data


def _model(
    tensors: list[Tensor], code: int, *, inputs: list[int], operands: list[int], output: int, custom_name: str = ""
) -> bytes:
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode = operator_code.deprecatedBuiltinCode = code
    operator_code.customCode = custom_name or None
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, operands, [output]
    graph = schema.SubGraphT()
    graph.tensors = [tensor for tensor, _ in tensors]
    graph.inputs, graph.outputs, graph.operators = inputs, [output], [operator]
    buffers = [schema.BufferT()]  # buffer 0 is empty by convention
    for tensor, data in tensors:
        tensor.buffer = len(buffers)
        buffers.append(schema.BufferT())
        buffers[-1].data = list(data) or None
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [operator_code], [graph], buffers
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
