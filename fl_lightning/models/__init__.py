"""Models: the papers' architectures."""

from fl_lightning.models._base import Loss, Model
from fl_lightning.models._cmp_cifar_cnn import CmpCifarCnn
from fl_lightning.models._dropout import KeyedDropout, draw_masks, sample_masks
from fl_lightning.models._lenet5 import Lenet5
from fl_lightning.models._linear import Linear
from fl_lightning.models._mlp import Mlp
from fl_lightning.models._multi_party_cnn import MultiPartyCnn
from fl_lightning.models._pdrr_cnn import PdrrCnn
from fl_lightning.models._resnet18 import FrozenNorm2d, Resnet18
from fl_lightning.models._svm import Svm
from fl_lightning.models._wbc_cifar_cnn import WbcCifarCnn
from fl_lightning.models._wbc_fmnist_cnn import WbcFmnistCnn
from fl_lightning.registry import Registry

REGISTRIES = {
    "model": Registry(
        "model", [Linear, Svm, Mlp, Lenet5, WbcFmnistCnn, WbcCifarCnn, CmpCifarCnn, MultiPartyCnn, PdrrCnn, Resnet18]
    )
}

__all__ = [
    "CmpCifarCnn",
    "FrozenNorm2d",
    "KeyedDropout",
    "Lenet5",
    "Linear",
    "Loss",
    "Mlp",
    "Model",
    "MultiPartyCnn",
    "PdrrCnn",
    "Resnet18",
    "Svm",
    "WbcCifarCnn",
    "WbcFmnistCnn",
    "draw_masks",
    "sample_masks",
]
