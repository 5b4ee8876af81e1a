"""From what was asked to what is decided, on this machine and with these data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import PassTimes
from asyncdgl.nets.shape import cut
from asyncdgl.plan.balance import by_cost, open_questions
from asyncdgl.plan.machine import device_here, precision_here, threads_here
from asyncdgl.plan.memory import asked_outputs
from asyncdgl.plan.parts import check_parts


def on_this_machine(asked: RunConfig) -> RunConfig:
    """What ``auto`` comes to here, and paths that don't depend on the working directory; other questions stay open.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    device = device_here(asked)
    folder = asked.data.data_dir
    return asked.replace(
        device=device,
        precision=precision_here(asked, device),
        threads=threads_here(asked),
        data={} if folder is None else {"data_dir": os.path.abspath(os.path.expanduser(folder))},
    )


def planned(asked: RunConfig) -> ResolvedConfig:
    """What is decided before anything is read or measured, to ask for memory and cost beforehand.

    Equal shares of the blocks and equal threads stand for a cut and threads by ``cost``, a second for each pass whose
    time is to be measured, and nothing for a mean that is to be measured.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    here = on_this_machine(asked)
    stages = here.stages
    blocks = len(asked_outputs(here)) if here.has_tensors else here.model.blocks
    ends = tuple(own[-1] + 1 for own in cut(blocks, stages, here.model.cut)[:-1]) if stages <= blocks else ()
    tree = here.model_dump()
    tree["data"] |= {"mean": here.data.mean or (), "std": here.data.std or ()}
    tree["model"]["cut"] = ends
    tree["buffer"] = here.real_buffer.model_dump()
    if here.virtual.step_times == "measure":
        tree["virtual"]["step_times"] = (PassTimes(train=1, forward=1),)
    if here.ray.threads == "cost":
        tree["ray"]["threads"] = None
    return ResolvedConfig.checked(tree)


def resolve(
    asked: RunConfig,
    folder: Path | None,
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> ResolvedConfig:
    """Everything that was left open, decided, so that a repeat has the same.

    Args:
        asked: what was asked.
        folder: of the decoded data set; None where nothing is computed.
        check: called between measurements; raises where they are to stop.
        say: is told what is measured, and what this machine decides.

    Raises:
        ConfigError: this machine can't decide it.
        DataError: the data don't fit what was asked.
        StageFailed: a process died while its passes were measured.
    """
    if asked.threads == "auto":
        say(
            f"threads: {threads_here(asked)}, from this machine's cores; other numbers of threads give other bits "
            "(--threads fixes it)"
        )
    config = planned(asked)
    if folder is None:
        return config
    from asyncdgl.data.dataset import open_dataset

    dataset = open_dataset(config, folder)
    check_parts(config, dataset.input_shape, len(dataset.classes))
    config = config.replace(data={"mean": dataset.mean, "std": dataset.std})
    if any(open_questions(asked)):
        say("measuring the stages' cost")
        from asyncdgl.learn.arithmetic import set_up_torch

        set_up_torch(config)
        config, _ = by_cost(asked, config, dataset.input_shape, len(dataset.classes), check)
    if config.runtime == "virtual" and asked.virtual.step_times == "measure":
        from asyncdgl.plan.step_times import measure_step_times

        say("measuring the stages' passes")
        config = config.replace(virtual={"step_times": measure_step_times(config, folder, check)})
    return config
