"""STAN itself: the reference model, and the rewritten one over three sets of operations.

Imports config and kernels.
Start at `model.Stan`, then `fused`, which describes the network once.
"""
