"""Every node of the pack, in the order in which people meet them."""

from .lcm import VelaturaLcmModel, VelaturaLcmSample, VelaturaLcmSampler, VelaturaLcmSchedule
from .load import VelaturaDemoModel
from .train_lcm import VelaturaDistillLcm, VelaturaFinetuneLcm

NODES = [
    VelaturaDemoModel,
    VelaturaLcmModel,
    VelaturaLcmSample,
    VelaturaLcmSampler,
    VelaturaLcmSchedule,
    VelaturaDistillLcm,
    VelaturaFinetuneLcm,
]
