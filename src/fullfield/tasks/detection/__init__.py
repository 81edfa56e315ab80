"""Finding and outlining objects: detectors on a feature pyramid of any backbone, their losses and average precision."""
