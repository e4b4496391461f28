"""The set of nodes that the runtime offers."""

import pytest

from velatura.hosts import schema as io
from velatura.runtime import registry


def node(**fields):
    class Made(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema("Made", **fields)

    return Made


def test_stock_nodes_and_our_own_are_there_under_their_ids():
    nodes = registry.all_nodes()
    assert {"VelaturaDemoModel", "CheckpointLoaderSimple", "KSampler", "SaveImage"} <= set(nodes)
    assert all(info["name"] == id_ for id_, info in registry.object_info(nodes).items())


def test_two_nodes_of_one_id_are_refused():
    """One would hide the other."""
    with pytest.raises(ValueError, match="two nodes are called Made"):
        registry.by_id([node(), node()])


@pytest.mark.parametrize("fields", [{"is_input_list": True}, {"outputs": [io.Image.Output(is_output_list=True)]}])
def test_nodes_that_deal_in_lists_are_refused(fields):
    """The executor would hand the whole list to the next node as if it were one value."""
    with pytest.raises(ValueError, match=r"Made: .* lists"):
        registry.by_id([node(**fields)])
