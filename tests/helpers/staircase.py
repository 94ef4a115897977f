"""A cost in steps, as processors have them: blocks of channels, and a price for every layer that is there at all."""

import numpy as np
import torch

from l0prune.cost.cost import Cost, SidesOn


class Staircase(Cost):
    """Every layer that is left costs `fixed`, and its coefficient for each index of its sides rounded up to whole blocks."""

    def __init__(self, terms, n_gates, *, block=16, fixed=0.0):
        self.block, self.fixed = block, fixed
        self.coefficient = np.array([term.coefficient for term in terms])
        super().__init__([(term.name, term.sides) for term in terms], n_gates)

    def layer_costs(self, counts):
        shape = (-1, *([1] * (counts.ndim - 1)))
        product, is_there = self.coefficient.reshape(shape), True
        for column in range(self.layer_sides.shape[1]):
            side = counts[self.layer_sides[:, column]]
            padded = (self.layer_sides[:, column] == 0).reshape(shape)
            product = product * np.where(padded, 1.0, np.ceil(side / self.block) * self.block)
            is_there = is_there & (side > 0)
        return np.where(is_there, self.fixed + product, 0.0)

    def expected_layers(self, open_probability):
        """As if counts were their means, with steps smoothed to lines, and a layer there if its emptiest side is."""
        counts = SidesOn(self.sides, open_probability).counts(open_probability)
        cost = torch.as_tensor(self.coefficient).to(open_probability)
        is_there = torch.ones_like(cost)
        for column in range(self.layer_sides.shape[1]):
            index = torch.as_tensor(self.layer_sides[:, column])
            side = counts[index]
            cost = cost * torch.where(index == 0, 1.0, side + (self.block - 1) / 2 * side.clamp_max(1.0))
            is_there = torch.minimum(is_there, side.clamp_max(1.0))
        return (cost + self.fixed * is_there) / self.dense

    def expected(self, open_probability):
        return self.expected_layers(open_probability).sum()
