"""The ONNX file format, written by hand: protobuf's wire format of the few messages that a graph of tensors needs.

Field numbers are those of ``onnx.proto`` (ONNX 1.x). The `onnx` package, which would do this too, brings protobuf and
31 MB with it; the tests hold what is written here against its checker.

A protobuf message is a sequence of fields, each a key (field number and wire type), and a value: a varint, or a
length and that many bytes. Nothing here reads files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

IR_VERSION = 8
OPSET = 17  # onnxruntime >= 1.12, OpenVINO >= 2022.3, onnxruntime-web
MAX_BYTES = (1 << 31) - 1  # protobuf's limit for one message

FLOAT, INT64, BOOL = 1, 7, 9  # TensorProto.DataType
_DATA_TYPES = {"float32": FLOAT, "int64": INT64, "bool": BOOL}
_VARINT, _LENGTH, _FIXED32 = 0, 2, 5  # wire types
_ATTRIBUTE_TYPES = {"f": 1, "i": 2, "s": 3, "g": 5, "floats": 6, "ints": 7}  # AttributeProto.AttributeType
_ATTRIBUTE_FIELDS = {"f": 2, "i": 3, "s": 4, "g": 6, "floats": 7, "ints": 8}

_ONE_BYTE = [bytes([value]) for value in range(0x80)]

# The size of a dimension: a number, or a name for one that is known only when the model is run.
Dimension = int | str


class Message:
    """A protobuf message in pieces, so that nesting messages copies no weights."""

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview] = []
        self.size = 0

    def _add(self, piece: bytes | memoryview) -> None:
        self.pieces.append(piece)
        self.size += len(piece)

    def integer(self, field: int, value: int) -> Message:
        """Write a varint field; negative numbers as protobuf's int64 writes them."""
        self._add(_varint(field << 3 | _VARINT) + _varint(value & (1 << 64) - 1))
        return self

    def real(self, field: int, value: float) -> Message:
        """Write a float field, 32 bits."""
        self._add(_varint(field << 3 | _FIXED32) + struct.pack("<f", value))
        return self

    def content(self, field: int, value: str | bytes | memoryview | Message) -> Message:
        """Write a field of text, bytes or another message."""
        if isinstance(value, Message):
            self._add(_varint(field << 3 | _LENGTH) + _varint(value.size))
            self.pieces += value.pieces
            self.size += value.size
            return self
        raw = value.encode() if isinstance(value, str) else value
        self._add(_varint(field << 3 | _LENGTH) + _varint(len(raw)))
        self._add(raw)
        return self

    def to_bytes(self) -> bytes:
        return b"".join(self.pieces)


def _varint(value: int) -> bytes:
    """Write seven bits a byte, the lowest first; the eighth says that more follow."""
    if value < 0x80:  # nearly always
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tensor(name: str, values: np.ndarray) -> Message:
    """Write a TensorProto; `values` float32, int64 or bool."""
    message = Message()
    for size in values.shape:
        message.integer(1, size)
    message.integer(2, _DATA_TYPES[values.dtype.name]).content(8, name)
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return message.content(9, little.reshape(-1).view(np.uint8).data if little.size else b"")


def value_info(name: str, shape: Sequence[Dimension], element: int = FLOAT) -> Message:
    """Write a ValueInfoProto: name, type and shape of an input or output."""
    dimensions = Message()
    for size in shape:
        one = Message()
        dimensions.content(1, one.content(2, size) if isinstance(size, str) else one.integer(1, size))
    tensor_type = Message().integer(1, element).content(2, dimensions)
    return Message().content(1, name).content(2, Message().content(1, tensor_type))


def node(kind: str, inputs: Iterable[str], outputs: Iterable[str], attributes: Mapping[str, Any]) -> Message:
    """Write a NodeProto, named for its first output; attributes: numbers, text, sequences of numbers, or graphs."""
    message = Message()
    for name in inputs:
        message.content(1, name)
    outputs = list(outputs)
    for name in outputs:
        message.content(2, name)
    message.content(3, outputs[0]).content(4, kind)
    for name, value in attributes.items():
        message.content(5, _attribute(name, value))
    return message


def _attribute(name: str, value: Any) -> Message:
    message = Message().content(1, name)
    if isinstance(value, Message):
        kind = "g"
    elif isinstance(value, str):
        kind = "s"
    elif isinstance(value, (list, tuple)):
        kind = "floats" if any(isinstance(one, float) for one in value) else "ints"
    else:
        kind = "f" if isinstance(value, float) else "i"
    for one in value if kind in ("floats", "ints") else [value]:
        if kind in ("f", "floats"):
            message.real(_ATTRIBUTE_FIELDS[kind], one)
        elif kind in ("i", "ints"):
            message.integer(_ATTRIBUTE_FIELDS[kind], one)
        else:
            message.content(_ATTRIBUTE_FIELDS[kind], one)
    return message.integer(20, _ATTRIBUTE_TYPES[kind])


def graph(
    name: str,
    nodes: Iterable[Message],
    initializers: Iterable[Message],
    inputs: Iterable[Message],
    outputs: Iterable[Message],
) -> Message:
    """Write a GraphProto."""
    message = Message()
    for one in nodes:
        message.content(1, one)
    message.content(2, name)
    for field, some in ((5, initializers), (11, inputs), (12, outputs)):
        for one in some:
            message.content(field, one)
    return message


def model(main: Message, *, producer: str, version: str, doc: str, metadata: Mapping[str, str]) -> bytes:
    """Write a whole ModelProto, ready to be written to a file.

    Raises
    ------
    OverflowError
        If it is larger than protobuf allows.
    """
    message = Message().integer(1, IR_VERSION).content(2, producer).content(3, version).content(6, doc)
    message.content(7, main).content(8, Message().content(1, "").integer(2, OPSET))
    for key, value in metadata.items():
        message.content(14, Message().content(1, key).content(2, value))
    if message.size > MAX_BYTES:
        raise OverflowError(f"the model takes {message.size} bytes; the ONNX format holds {MAX_BYTES}")
    return message.to_bytes()
