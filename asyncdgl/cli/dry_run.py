"""`asyncdgl run --dry-run`: what a run would be, without starting it."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

from asyncdgl.cli.tables import console
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import dump_config
from asyncdgl.plan.memory import buffer_bytes, megabytes, usable_bytes
from asyncdgl.plan.resolve import planned
from asyncdgl.report.labels import threads_of_stages


def show_dry_run(asked: RunConfig) -> None:
    """Print the resolved configuration, each stage's parameters and cost, and the buffers' memory."""
    config = planned(asked)
    if not config.has_tensors:
        click.echo(dump_config(config))
        click.echo("Nothing is computed: no parameters, no cost, no memory for activations.")
        return
    from asyncdgl.data.cache import data_shape
    from asyncdgl.nets.shape import block_shapes, cut

    (channels, *_), classes = data_shape(config.data)
    from asyncdgl.learn.arithmetic import set_up_torch
    from asyncdgl.nets.cost import stage_costs  # imports torch: only once the folder is known to be there
    from asyncdgl.plan.balance import by_cost, times_of_cut

    set_up_torch(config)
    config, measured = by_cost(asked, config, channels, classes)
    if measured is None and config.model.balance == "cost" and config.trained_stages > 1:
        measured = times_of_cut(config, channels, classes)

    costs = stage_costs(config, channels, classes)
    click.echo(dump_config(config))
    shapes = block_shapes(config.model, channels, config.data.image_size)
    parts = cut(config.model, config.stages) if config.trained_stages > 1 else [range(config.model.blocks)]
    total = sum(c.module_multiply_adds + c.aux_multiply_adds for c in costs)
    table = Table(title="Stages (multiply-adds of one image's forward pass)", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "blocks", "output", "parameters", "auxiliary", "multiply-adds", "auxiliary", "share"):
        table.add_column(name, justify="right")
    for number, (blocks, cost) in enumerate(zip(parts, costs, strict=True), 1):
        last = shapes[blocks[-1]]
        table.add_row(
            str(number),
            f"{blocks[0] + 1}-{blocks[-1] + 1}" if len(blocks) > 1 else str(blocks[0] + 1),
            f"{last.features}x{last.pixels}x{last.pixels}",
            f"{cost.module_parameters:,}",
            f"{cost.aux_parameters:,}",
            f"{cost.module_multiply_adds:,}",
            f"{cost.aux_multiply_adds:,}",
            f"{(cost.module_multiply_adds + cost.aux_multiply_adds) / total:.0%}",
        )
    out = console()
    out.print(table)
    if measured is not None:
        times = ", ".join(f"{1000 * seconds:.1f}" for seconds in measured.pass_seconds)
        out.print(
            f"Training pass of each stage, measured: {times} ms. Where each has its own cores: "
            f"{measured.updates_per_second * config.batch_size:.0f} images/s, {measured.efficiency:.0%} of the stages' "
            "time computing"
        )
    if isinstance(config.ray.threads, tuple):
        out.print(f"CPU: {threads_of_stages(config)}")
    sizes = buffer_bytes(config)
    if sizes:
        each = ", ".join(megabytes(size) for size in sizes)
        out.print(
            f"Replay buffers, {config.buffer.size} mini-batches each: {each}; together {megabytes(sum(sizes))} "
            f"of the {megabytes(usable_bytes(config))} that this machine can give"
        )
    else:
        out.print("No replay buffers.")
