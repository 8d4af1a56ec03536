"""Modules of torch with given weights, for files in which a module was pickled whole."""

import torch


class Whole(torch.nn.Module):
    """A module with parameters at dotted names, which is pickled whole."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            *above, last = name.split(".")
            place = self
            for part in above:
                if part not in place._modules:
                    place.add_module(part, torch.nn.Module())
                place = place._modules[part]
            place.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
