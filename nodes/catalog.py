"""Every node of the pack, in the order in which people meet them."""

from .conditions import VelaturaSemanticMap, VelaturaSuperResolution, VelaturaSuperResolutionModel
from .drag import VelaturaDrag, VelaturaDragIdentity
from .drag_editor import VelaturaDragEditor
from .interpolate import VelaturaLatentPath, VelaturaSlerpConditioning, VelaturaSlerpLatents
from .inversion import VelaturaInvert, VelaturaInvertPair
from .joint_layers import VelaturaConditionOnLayer, VelaturaJointLayers, VelaturaShareAttention
from .layer_patch import VelaturaApplyTransparency, VelaturaLayerPrompts, VelaturaLoadLayerPatch
from .layer_stack import VelaturaLayerStack
from .layers import VelaturaCompositeLayers, VelaturaSaveLayers
from .lcm import VelaturaLcmModel, VelaturaLcmSample, VelaturaLcmSampler, VelaturaLcmSchedule
from .load import VelaturaDemoModel
from .measure import VelaturaCompareImages
from .paint_map import VelaturaPaintMap
from .reconstruct import (
    VelaturaLoadInversion,
    VelaturaMorph,
    VelaturaPromptSwitchEdit,
    VelaturaReconstruct,
    VelaturaSaveInversion,
)
from .smooth import VelaturaSmoothLora, VelaturaSmoothnessMeter
from .train_conditions import VelaturaTrainSpatial
from .train_layers import VelaturaTrainLayerLora
from .train_lcm import VelaturaDistillLcm, VelaturaFinetuneLcm
from .train_smooth import VelaturaTrainSmoothLora
from .train_transparency import VelaturaTrainTransparency
from .transparency import (
    VelaturaDecodeTransparent,
    VelaturaEncodeTransparent,
    VelaturaLoadTransparency,
    VelaturaPadRgb,
)

NODES = [
    VelaturaDemoModel,
    VelaturaLcmModel,
    VelaturaLcmSample,
    VelaturaLcmSampler,
    VelaturaLcmSchedule,
    VelaturaDistillLcm,
    VelaturaFinetuneLcm,
    VelaturaSmoothLora,
    VelaturaTrainSmoothLora,
    VelaturaSmoothnessMeter,
    VelaturaSlerpLatents,
    VelaturaSlerpConditioning,
    VelaturaLatentPath,
    VelaturaInvert,
    VelaturaInvertPair,
    VelaturaReconstruct,
    VelaturaPromptSwitchEdit,
    VelaturaMorph,
    VelaturaSaveInversion,
    VelaturaLoadInversion,
    VelaturaLoadTransparency,
    VelaturaEncodeTransparent,
    VelaturaDecodeTransparent,
    VelaturaLoadLayerPatch,
    VelaturaApplyTransparency,
    VelaturaLayerPrompts,
    VelaturaJointLayers,
    VelaturaConditionOnLayer,
    VelaturaShareAttention,
    VelaturaLayerStack,
    VelaturaPadRgb,
    VelaturaCompositeLayers,
    VelaturaSaveLayers,
    VelaturaPaintMap,
    VelaturaSemanticMap,
    VelaturaSuperResolution,
    VelaturaSuperResolutionModel,
    VelaturaDragEditor,
    VelaturaDrag,
    VelaturaDragIdentity,
    VelaturaTrainTransparency,
    VelaturaTrainLayerLora,
    VelaturaTrainSpatial,
    VelaturaCompareImages,
]
