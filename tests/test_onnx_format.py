"""The hand-written ONNX encoder, read back by the onnx package."""

import numpy as np
import pytest

from audiotag.runtimes import onnx_format

onnx = pytest.importorskip("onnx")


def parsed(message, kind):
    return kind.FromString(message.to_bytes())


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)])
def test_integers(value):
    attribute = parsed(onnx_format._attribute("a", value), onnx.AttributeProto)
    assert (attribute.name, attribute.i, attribute.type) == ("a", value, onnx.AttributeProto.INT)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.float32(1.5),
        np.zeros((0, 3), np.float32),
        np.array([-1, 2**40]),
        np.array([True, False]),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(4, dtype=">f4"),
    ],
)
def test_tensors(values):
    values = np.asarray(values)
    found = onnx.numpy_helper.to_array(parsed(onnx_format.tensor("name", values), onnx.TensorProto))
    assert found.shape == values.shape and found.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(found, values)


def test_attributes_of_every_kind():
    body = onnx_format.graph("body", [], [], [], [])
    given = {"f": 0.5, "i": 3, "s": "text é", "floats": [1.0, -2.0], "ints": [1, 300, -1], "graph": body}
    node = parsed(onnx_format.node("Kind", ["a", ""], ["b", "c"], given), onnx.NodeProto)
    assert (node.op_type, list(node.input), list(node.output), node.name) == ("Kind", ["a", ""], ["b", "c"], "b")
    found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert found.pop("graph").name == "body"
    assert found["ints"] == [1, 300, -1] and found["floats"] == [1.0, -2.0] and found["s"] == "text é".encode()
    assert (found["f"], found["i"]) == (0.5, 3)


def test_a_model_passes_the_checker_and_has_its_metadata():
    nodes = [onnx_format.node("Add", ["x", "c"], ["y"], {})]
    inputs = [onnx_format.value_info("x", ("batch", 3))]
    outputs = [onnx_format.value_info("y", ("batch", 3))]
    graph = onnx_format.graph("g", nodes, [onnx_format.tensor("c", np.ones(3, np.float32))], inputs, outputs)
    metadata = {"labels": '["é"]', "empty": ""}
    content = onnx_format.model(graph, producer="p", version="1", doc="words", metadata=metadata)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {one.key: one.value for one in model.metadata_props} == metadata
    assert (model.producer_name, model.producer_version, model.doc_string) == ("p", "1", "words")
    assert [one.version for one in model.opset_import] == [onnx_format.OPSET]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("batch", 3)


def test_weights_are_not_copied_until_the_end():
    values = np.ones(1000, np.float32)
    message = onnx_format.graph("g", [], [onnx_format.tensor("w", values)], [], [])
    values[:] = 2  # seen through, for the message holds a view
    assert onnx.numpy_helper.to_array(parsed(message, onnx.GraphProto).initializer[0])[0] == 2
    assert len(message.to_bytes()) == message.size


def test_too_large_a_model_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_format, "MAX_BYTES", 100)
    graph = onnx_format.graph("g", [], [onnx_format.tensor("w", np.ones(100, np.float32))], [], [])
    with pytest.raises(OverflowError, match="holds 100"):
        onnx_format.model(graph, producer="", version="", doc="", metadata={})
