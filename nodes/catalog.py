"""Every node of the pack, in the order in which people meet them."""

from .lcm import VelaturaLcmModel, VelaturaLcmSample, VelaturaLcmSampler, VelaturaLcmSchedule
from .load import VelaturaDemoModel

NODES = [
    VelaturaDemoModel,
    VelaturaLcmModel,
    VelaturaLcmSample,
    VelaturaLcmSampler,
    VelaturaLcmSchedule,
]
