"""Shapes of a network's outputs, block by block. Those of the built-in network are found without torch."""

from __future__ import annotations

from asyncdgl.config.sections import ModelConfig
from asyncdgl.nets.shape import Shape, conv_shapes


def block_outputs(model: ModelConfig, input_shape: Shape, classes: int) -> list[Shape]:
    """Shape of each block's output, from the first to the last; torch is imported for a network of one's own only.

    Args:
        model: names the network.
        input_shape: of one image.
        classes: of the data set.

    Raises:
        ConfigError: a network of one's own can't be used; the message names the block.
    """
    if model.name == "conv":
        shapes = conv_shapes(input_shape, model.blocks, model.width, model.downsample)
        return [(s.features, s.height, s.width) for s in shapes]
    from asyncdgl.nets.probe import measured_outputs

    return measured_outputs(model, input_shape, classes)
