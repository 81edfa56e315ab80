"""Labelling every pixel: decoders on any backbone, their losses, mean IoU, and inference on images of any size."""
