"""Depthwise convolution with large kernels, faster than ATen's where that was measured."""

from .operators import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
