"""Models: the papers' architectures."""

from fl_lightning.models._base import Loss, Model
from fl_lightning.models._cmp_cifar_cnn import CmpCifarCnn
from fl_lightning.models._dropout import KeyedDropout, draw_masks, sample_masks
from fl_lightning.models._flat import FlatNetwork
from fl_lightning.models._lenet5 import Lenet5
from fl_lightning.models._lightning import Lightning, UserModule
from fl_lightning.models._linear import Linear
from fl_lightning.models._losses import (
    LOSSES,
    CrossEntropy,
    Focal,
    Hinge,
    Huber,
    Mse,
    SampleLoss,
    confidence,
    cross_entropy,
    focal,
    hinge,
    huber,
    loss_for,
    mse,
    predict,
)
from fl_lightning.models._mlp import Mlp
from fl_lightning.models._multi_party_cnn import MultiPartyCnn
from fl_lightning.models._pdrr_cnn import PdrrCnn
from fl_lightning.models._resnet18 import FrozenNorm2d, Resnet18
from fl_lightning.models._size import check_size, count_parameters
from fl_lightning.models._statistics import BATCH_NORMS, with_policy
from fl_lightning.models._svm import Svm
from fl_lightning.models._wbc_cifar_cnn import WbcCifarCnn
from fl_lightning.models._wbc_fmnist_cnn import WbcFmnistCnn
from fl_lightning.registry import Registry

REGISTRIES = {
    "model": Registry(
        "model",
        Model,
        [Linear, Svm, Mlp, Lenet5, WbcFmnistCnn, WbcCifarCnn, CmpCifarCnn, MultiPartyCnn, PdrrCnn, Resnet18, Lightning],
    ),
    "loss": Registry("loss", SampleLoss, [CrossEntropy, Focal, Hinge, Mse, Huber]),
}

__all__ = [
    "BATCH_NORMS",
    "LOSSES",
    "CmpCifarCnn",
    "CrossEntropy",
    "FlatNetwork",
    "Focal",
    "FrozenNorm2d",
    "Hinge",
    "Huber",
    "KeyedDropout",
    "Lenet5",
    "Lightning",
    "Linear",
    "Loss",
    "Mlp",
    "Model",
    "Mse",
    "MultiPartyCnn",
    "PdrrCnn",
    "Resnet18",
    "SampleLoss",
    "Svm",
    "UserModule",
    "WbcCifarCnn",
    "WbcFmnistCnn",
    "check_size",
    "confidence",
    "count_parameters",
    "cross_entropy",
    "draw_masks",
    "focal",
    "hinge",
    "huber",
    "loss_for",
    "mse",
    "predict",
    "sample_masks",
    "with_policy",
]
