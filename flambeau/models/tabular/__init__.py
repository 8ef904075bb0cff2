"""Networks that look at rows of a table."""

from flambeau.models.tabular.afm import AFM
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.models.tabular.autoint import AutoInt, AutoIntPlus
from flambeau.models.tabular.dcn import DCN
from flambeau.models.tabular.deep_crossing import DeepCrossing
from flambeau.models.tabular.deepfm import DeepFM
from flambeau.models.tabular.dnn import DNN
from flambeau.models.tabular.factorization_machine import FactorizationMachine
from flambeau.models.tabular.hofm import HOFM
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.models.tabular.nfm import NFM
from flambeau.models.tabular.xdeepfm import XDeepFM

__all__ = [
    "AFM",
    "AutoInt",
    "AutoIntPlus",
    "DCN",
    "DNN",
    "DeepCrossing",
    "DeepFM",
    "FactorizationMachine",
    "HOFM",
    "LogisticRegression",
    "MLPDecoder",
    "MLPEncoder",
    "NFM",
    "XDeepFM",
]
