"""Every node of the pack, in the order in which people meet them."""

from .load import VelaturaDemoModel

NODES = [VelaturaDemoModel]
