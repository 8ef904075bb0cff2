"""Losses between a student and its teacher.

All are modules called with the student's tensor first, the teacher's second, and labels (where they count) third, and
give a scalar. A loss that needs two tensors of a model takes them as a tuple; `CRDLoss` also asks for the samples'
indices, and `TfKDLoss`, `SSKDPretextLoss` and `RegularizationLoss` look at one model only. The teacher's tensors are
constants if they come without gradients, which is the caller's choice; heads trained on the teacher's side need them.
Sums are taken in float32 at least.
"""

from flambeau.objectives.distillation.alias import AliasSampler
from flambeau.objectives.distillation.crd import CRDLoss
from flambeau.objectives.distillation.dist import DISTLoss, DISTPlusLoss
from flambeau.objectives.distillation.hints import (
    ABLoss,
    AffinityLoss,
    AttentionTransfer,
    FitNetLoss,
    FSPLoss,
    FTLoss,
    HierarchicalContextLoss,
    KTALoss,
    RegularizationLoss,
    SRDLoss,
)
from flambeau.objectives.distillation.logits import (
    KDLoss,
    LogitStdKDLoss,
    SKDDirectionLoss,
    SKDInstanceLoss,
    TfKDLoss,
)
from flambeau.objectives.distillation.paired import PairMSELoss
from flambeau.objectives.distillation.relational import (
    CCKDLoss,
    ICKDLoss,
    PKTLoss,
    RKDAngleLoss,
    RKDDistanceLoss,
    RKDLoss,
    SPKDLoss,
)
from flambeau.objectives.distillation.sskd import SSKDLoss, SSKDPretextLoss
from flambeau.objectives.distillation.variational import PADL2Loss, VIDLoss

__all__ = [
    "ABLoss",
    "AffinityLoss",
    "AliasSampler",
    "AttentionTransfer",
    "CCKDLoss",
    "CRDLoss",
    "DISTLoss",
    "DISTPlusLoss",
    "FSPLoss",
    "FTLoss",
    "FitNetLoss",
    "HierarchicalContextLoss",
    "ICKDLoss",
    "KDLoss",
    "KTALoss",
    "LogitStdKDLoss",
    "PADL2Loss",
    "PKTLoss",
    "PairMSELoss",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "RKDLoss",
    "RegularizationLoss",
    "SKDDirectionLoss",
    "SKDInstanceLoss",
    "SPKDLoss",
    "SRDLoss",
    "SSKDLoss",
    "SSKDPretextLoss",
    "TfKDLoss",
    "VIDLoss",
]
