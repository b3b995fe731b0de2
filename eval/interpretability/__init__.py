"""What a model looks at: Grad-CAM beside human maps, the effective receptive field, the kernels."""
