"""Deploying: from a run to a file, a service or a shared model that others can use.

What runs an exported file (`Predictor` and what it imports for one) needs no PyTorch; what makes one does.
"""
