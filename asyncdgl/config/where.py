"""Where keys have an effect. A setting that would have none is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncdgl.config.defaults import fixed_image_size, reads_files
from asyncdgl.config.setting import Where
from asyncdgl.delays.profiles import is_slow_stage

if TYPE_CHECKING:
    from asyncdgl.config.model import RunConfig


def _is_own(name: str) -> bool:
    """Whether it is a part of the user's, which may read any key."""
    return ":" in name


def _hops(config: RunConfig) -> bool:
    return not config.in_one and config.stages > 1


def _asynchronous(config: RunConfig) -> bool:
    return _hops(config) and (config.algorithm == "async-dgl" or _is_own(config.algorithm))


def _counts_bytes(config: RunConfig) -> bool:
    """Whether the size of entries matters: they are made, or a link's bandwidth is limited."""
    links = (config.profile.link(j) for j in range(1, config.stages))
    return config.has_tensors or any(link.bandwidth is not None for link in links)


_COMPUTING = Where("to runs that compute: not to virtual.train false", lambda c: c.has_tensors)
_SIZES = Where("to runs that compute, or have links of limited bandwidth", _counts_bytes)
_STAGES = Where("to at least two stages, not to backprop", _hops)

COMPUTING = (_COMPUTING,)
WITH_SIZES = (_SIZES,)
PACED = (Where("to --runtime ray or virtual", lambda c: c.runtime != "sim"),)
ON_RAY = (Where("to --runtime ray", lambda c: c.runtime == "ray"),)
VIRTUAL = (Where("to --runtime virtual", lambda c: c.runtime == "virtual"),)
NOT_COMPUTING = (Where("to --runtime virtual with virtual.train false", lambda c: not c.has_tensors),)

FROM_FILES = (
    _COMPUTING,
    Where("to data sets that are read from files", lambda c: reads_files(c.data.dataset)),
)
ANY_SIZE = (
    _SIZES,
    Where("to the data sets image-folder and synthetic", lambda c: fixed_image_size(c.data.dataset) is None),
)

CONV = (_SIZES, Where("to the network conv", lambda c: c.model.name == "conv"))
OWN_NETWORK = (
    _COMPUTING,
    Where("to a network of one's own, as --model package.module:attribute", lambda c: _is_own(c.model.name)),
)
WITH_AUX = (
    _COMPUTING,
    Where(
        "to at least two stages, not to backprop; or with model.head aux", lambda c: _hops(c) or c.model.head == "aux"
    ),
)
UNCUT = (_COMPUTING, _STAGES, Where("where model.cut is null", lambda c: c.model.cut is None))
CUT = (_SIZES, Where("to at least two stages", lambda c: c.stages > 1))

BUFFERED = (
    Where(
        "to runs with replay buffers: at least two stages, --algorithm async-dgl or sync-dgl with --runtime ray",
        lambda c: _asynchronous(c) or (_hops(c) and c.algorithm == "sync-dgl" and c.runtime == "ray"),
    ),
)
ASYNCHRONOUS = (Where("to --algorithm async-dgl with at least two stages", _asynchronous),)
ENCODED = (_SIZES, _STAGES)
FETCHING = (
    Where("to --runtime ray or virtual with at least two stages", lambda c: c.runtime != "sim" and c.stages > 1),
)

MOMENTUM = (_COMPUTING, Where("to the optimizer sgd", lambda c: c.optim.name == "sgd" or _is_own(c.optim.name)))
ADAM = (
    _COMPUTING,
    Where("to the optimizers adam and adamw", lambda c: c.optim.name in ("adam", "adamw") or _is_own(c.optim.name)),
)
STEPS = (
    _COMPUTING,
    Where("to the schedule step", lambda c: c.optim.schedule == "step" or _is_own(c.optim.schedule)),
)
DECAYING = (
    *STEPS,
    Where(
        "where lr_decay_every or lr_milestones is given",
        lambda c: c.optim.lr_decay_every is not None or c.optim.lr_milestones is not None,
    ),
)

DELAYED = (
    Where(
        "to --algorithm async-dgl or --runtime ray",
        lambda c: c.algorithm == "async-dgl" or _is_own(c.algorithm) or c.runtime == "ray",
    ),
)
SLOWED = (
    Where(
        "to the delay profiles slow_stage<N>",
        lambda c: isinstance(c.delays.profile, str) and is_slow_stage(c.delays.profile),
    ),
)
