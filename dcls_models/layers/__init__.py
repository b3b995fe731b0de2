"""The layers: drop-in convolutions whose kernel elements learn where they sit."""

from .dcls import Dcls1d, Dcls2d, Dcls2dSame, Dcls3d, DclsNd
from .delays import Delays, FusedDelays, narrowed
from .interpolation import SCHEMES, dense_kernel
from .long_kernels import fft_convolution
from .one_axis import Dcls2_1d, Dcls2dK1d, Dcls3_1d
from .trimming import trim

__all__ = [
    "SCHEMES",
    "Dcls1d",
    "Dcls2_1d",
    "Dcls2d",
    "Dcls2dK1d",
    "Dcls2dSame",
    "Dcls3_1d",
    "Dcls3d",
    "DclsNd",
    "Delays",
    "FusedDelays",
    "dense_kernel",
    "fft_convolution",
    "narrowed",
    "trim",
]
