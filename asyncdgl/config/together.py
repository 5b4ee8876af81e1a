"""What goes together: everything that no single field shows, all of it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncdgl.config.defaults import fixed_image_size, needed_in_folder
from asyncdgl.errors import ConfigError, shown
from asyncdgl.registry import find

if TYPE_CHECKING:
    from asyncdgl.config.model import RunConfig


def problems_between(config: RunConfig) -> list[str]:
    """What is wrong with values that are right each by itself."""
    try:
        _ = config.real_buffer
    except ConfigError as error:  # the algorithm is not there, or is none
        return error.problems
    return [
        *_algorithm_problems(config),
        *_model_problems(config),
        *_data_problems(config),
        *_buffer_problems(config),
        *_optim_problems(config),
        *_virtual_problems(config),
        *_delay_problems(config),
    ]


def _algorithm_problems(config: RunConfig) -> list[str]:
    found = []
    runtimes = find("algorithm", config.algorithm).runtimes
    if config.runtime not in runtimes:
        others = ", ".join(sorted({"ray", "sim", "virtual"} - {*runtimes}))
        found.append(f"algorithm {config.algorithm} does not run on {others}: use --runtime {' or '.join(runtimes)}")
    threads = config.ray.threads
    if isinstance(threads, tuple) and len(threads) != config.stages:
        found.append(f"ray.threads must have a number for each stage ({config.stages}), got {len(threads)}")
    if config.ray.spares and config.device == "cuda":
        found.append("ray.spares goes with --device cpu: a spare process has no share of a GPU; set it to 0")
    return found


def _model_problems(config: RunConfig) -> list[str]:
    model, stages = config.model, config.stages
    found = []
    is_conv = model.name == "conv"  # the blocks of a network of one's own are counted once it is there
    has_too_few = is_conv and stages > model.blocks
    if has_too_few and config.has_tensors:
        found.append(
            f"stages must be at most model.blocks ({model.blocks}), since a stage is at least one block; "
            f"got {stages} (a deeper network: --set model.blocks={stages})"
        )
    cuts = 0 if has_too_few else stages - 1
    if model.cut is not None and (
        len(model.cut) not in ({cuts} if is_conv else {0, cuts})
        or list(model.cut) != sorted(set(model.cut))
        or (is_conv and any(block >= model.blocks for block in model.cut))
    ):
        below = f" below {model.blocks}" if is_conv else ""
        found.append(
            f"model.cut must name the last block of each stage but the last one's: {cuts} growing numbers{below}, "
            f"got {shown(list(model.cut))} (null for equal shares)"
        )
    if not is_conv:
        return found
    found += [
        f"model.downsample names block {block}, but the network has {model.blocks} blocks"
        for block in model.downsample
        if block > model.blocks
    ]
    if len(set(model.downsample)) < len(model.downsample):
        found.append("model.downsample names a block twice")
    last = config.data.image_size >> len(model.downsample)
    if last < 2:
        found.append(
            f"data.image_size {config.data.image_size} is too small for {len(model.downsample)} poolings: the last "
            f"block would have {last} pixels of a side, and needs 2; use larger images or fewer model.downsample"
        )
    return found


def _data_problems(config: RunConfig) -> list[str]:
    data = config.data
    found = []
    pixels = fixed_image_size(data.dataset)
    if pixels is not None and data.image_size != pixels:
        found.append(f"data.image_size of {data.dataset} is {pixels}, got {data.image_size}")
    needed = needed_in_folder(data.dataset)
    if needed is not None and data.data_dir is None and config.has_tensors:
        found.append(f"data.dataset {data.dataset} needs --data-dir DIR with {needed}")
    if (not data.mean) != (not data.std):
        found.append("data.mean and data.std must be given together")
    elif data.mean and data.std and len(data.mean) != len(data.std):
        found.append(f"data.mean has {len(data.mean)} channels and data.std {len(data.std)}")
    return found


def _buffer_problems(config: RunConfig) -> list[str]:
    buffer = config.real_buffer
    found = []
    if buffer.min_size > buffer.size:
        found.append(f"buffer.min_size must be at most buffer.size ({buffer.size}), got {buffer.min_size}")
    if buffer.on_full == "block" and buffer.max_reuse is None:
        found.append("buffer.on_full block needs a finite buffer.max_reuse: otherwise no place ever becomes free")
    if buffer.on_full == "block" and buffer.prefetch > 1:
        found.append(
            f"buffer.prefetch must be at most 1 where buffers block, got {buffer.prefetch}: what a reader fetched "
            "keeps its place until it is used"
        )
    return found


def _optim_problems(config: RunConfig) -> list[str]:
    optim = config.optim
    found = []
    if optim.lr_milestones is not None:
        if optim.lr_decay_every is not None:
            found.append("optim.lr_decay_every and optim.lr_milestones exclude each other: set one of them to null")
        if list(optim.lr_milestones) != sorted(set(optim.lr_milestones)):
            found.append("optim.lr_milestones must grow, for example [20, 40]")
    return found


def _virtual_problems(config: RunConfig) -> list[str]:
    times = config.virtual.step_times
    found = []
    if isinstance(times, tuple) and len(times) not in (1, config.stages):
        found.append(
            f"virtual.step_times must have one item for each stage ({config.stages}) or one for all, got {len(times)}"
        )
    if times == "measure" and not config.has_tensors:
        found.append("virtual.step_times measure needs virtual.train true: there is nothing to measure otherwise")
    return found


def _delay_problems(config: RunConfig) -> list[str]:
    try:
        profile = config.profile
    except ConfigError as error:
        return error.problems
    found = profile.problems(config.stages)
    if config.algorithm == "sync-dgl":
        found += [
            f"delays.profile {profile.name}: link {j} loses entries, but sync-dgl needs each of them: use async-dgl"
            for j in range(1, config.stages)
            if profile.link(j).loss
        ][:1]
    lengths = profile.lengths_in_use(config.stages)
    has_clock = config.runtime == "ray" or (config.runtime == "virtual" and config.virtual.step_times is not None)
    if profile.unit == "seconds" and not has_clock and lengths:
        mend = "use steps" if config.runtime == "sim" else "use steps, or give virtual.step_times"
        found.append(
            f"delays.profile {profile.name} is in seconds, but runtime {config.runtime} has no clock "
            f"({lengths[0]}): {mend}"
        )
    if config.model.name == "conv" and config.stages > config.model.blocks and not config.has_tensors:
        found += [
            f"delays.profile {profile.name}: bandwidth of link {j} counts bytes, but more stages than model.blocks "
            f"have no sizes: set model.blocks to {config.stages}, or use latency alone"
            for j in range(1, config.stages)
            if profile.link(j).bandwidth is not None
        ][:1]
    return found
