"""`asyncdgl run --dry-run`: what a run would be, without starting it."""

from __future__ import annotations

import click

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
    from asyncdgl.nets.outputs import block_outputs
    from asyncdgl.nets.shape import cut

    input_shape, classes = data_shape(config.data)
    # All of this takes long to import: only once the folder is known to be there.
    from rich import box
    from rich.table import Table

    from asyncdgl.cli.tables import console
    from asyncdgl.learn.arithmetic import set_up_torch
    from asyncdgl.nets.cost import stage_costs
    from asyncdgl.plan.balance import by_cost, times_of_cut
    from asyncdgl.plan.parts import check_parts

    set_up_torch(config)
    check_parts(config, input_shape, classes)
    config, measured = by_cost(asked, config, input_shape, classes)
    if measured is None and config.model.balance == "cost" and config.trained_stages > 1:
        measured = times_of_cut(config, input_shape, classes)

    costs = stage_costs(config, input_shape, classes)
    click.echo(dump_config(config))
    outputs = block_outputs(config.model, input_shape, classes)
    parts = [range(len(outputs))]
    if config.trained_stages > 1:
        parts = cut(len(outputs), config.stages, config.model.cut)
    total = sum(c.module_multiply_adds + c.aux_multiply_adds for c in costs)
    table = Table(title="Stages (multiply-adds of one image's forward pass)", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "blocks", "output", "parameters", "auxiliary", "multiply-adds", "auxiliary", "share"):
        table.add_column(name, justify="right")
    for number, (blocks, cost) in enumerate(zip(parts, costs, strict=True), 1):
        table.add_row(
            str(number),
            f"{blocks[0] + 1}-{blocks[-1] + 1}" if len(blocks) > 1 else str(blocks[0] + 1),
            "x".join(str(size) for size in outputs[blocks[-1]]),
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
    sizes = buffer_bytes(config, outputs)
    if sizes:
        each = ", ".join(megabytes(size) for size in sizes)
        out.print(
            f"Replay buffers, {config.buffer.size} mini-batches each: {each}; together {megabytes(sum(sizes))} "
            f"of the {megabytes(usable_bytes(config))} that this machine can give"
        )
    else:
        out.print("No replay buffers.")
