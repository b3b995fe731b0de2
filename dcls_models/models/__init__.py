"""The zoo: importing this package registers every model with timm."""

from .convnext_dcls import ConvNeXtDcls
from .fastvit_dcls import FastVitDcls
from .metaformer_dcls import MetaFormerDcls
from .resnet_dcls import ResNetDcls

__all__ = ["ConvNeXtDcls", "FastVitDcls", "MetaFormerDcls", "ResNetDcls"]
