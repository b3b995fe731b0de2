"""Dilated Convolution with Learnable Spacings (DCLS) for timm: importing this registers the models."""

from .checkpoint import CheckpointError
from .dclsify import dclsify
from .deploy import deploy
from .layers import trim
from .models import ConvNeXtDcls, FastVitDcls, MetaFormerDcls, ResNetDcls
from .spectrogram import LogMel
from .strided import slice_strided
from .warm_start import WarmStart, warm_start

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConvNeXtDcls",
    "FastVitDcls",
    "LogMel",
    "MetaFormerDcls",
    "ResNetDcls",
    "WarmStart",
    "dclsify",
    "deploy",
    "slice_strided",
    "trim",
    "warm_start",
]
