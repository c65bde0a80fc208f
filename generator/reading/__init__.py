"""Networks read: what a network is worth and how it was trained, from its weights alone.

statistics   what the classical readers know of weights, of every layer
reader       WeightReader: outputs on inputs that it has learned, and statistics -> values with intervals
choice       of several generated networks those that read best

It learns from the runs of zoos in `generator.training.reader`.
"""
