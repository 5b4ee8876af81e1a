"""Whether the user's own parts do what their doors ask for, before anything is made."""

from __future__ import annotations

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.delays.laws import Law, check_law
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.shape import Shape, cut
from asyncdgl.registry import choices, find

PROBE = 3
"""Rows of the mini-batches on which parts are tried."""


def check_parts(config: ResolvedConfig, input_shape: Shape, classes: int) -> None:
    """Try every part that is not built in, once, on little or nothing.

    Args:
        config: the run.
        input_shape: of an image, without the batch.
        classes: of the data set.

    Raises:
        ConfigError: with a message that names the part and what is wrong with it.
    """
    if _is_own("algorithm", config.algorithm) and config.runtime == "sim":
        find("algorithm", config.algorithm).check(config)
    if _is_own("sampler", config.buffer.sampler):
        from asyncdgl.buffers.samplers import check_sampler

        check_sampler(config.buffer.sampler)
    for law in _laws(config):
        if _is_own("law", law.law):
            check_law(law)
    if not config.has_tensors:
        return
    is_own = config.model.name != "conv" or _is_own("auxiliary", config.model.aux)
    if is_own or len(input_shape) != 3:  # the built-in networks fit all images
        from asyncdgl.nets.check import check_network

        check_network(config, input_shape, classes)
    if _is_own("codec", config.buffer.codec):
        from asyncdgl.buffers.codecs import check_codec

        outputs = block_outputs(config.model, input_shape, classes)
        for blocks in cut(len(outputs), config.stages, config.model.cut)[:-1]:
            check_codec(config.buffer.codec, (PROBE, *outputs[blocks[-1]]))
    if _is_own("loss", config.model.loss):
        from asyncdgl.learn.losses import check_loss

        check_loss(config.model.loss, classes)
    if _is_own("schedule", config.optim.schedule):
        from asyncdgl.learn.schedules import check_schedule

        check_schedule(config.optim, config.epochs)
    if _is_own("optimizer", config.optim.name):
        from asyncdgl.learn.optimizers import check_optimizer

        check_optimizer(config.optim)


def _is_own(kind: str, name: str) -> bool:
    return name not in choices(kind)


def _laws(config: ResolvedConfig) -> list[Law]:
    return [config.profile.link(j).latency for j in range(1, config.stages)]
