"""Every wrong input ends with exit code 2 and one message that helps, before anything is created."""

from __future__ import annotations

import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image

from asyncdgl.cli.main import main
from asyncdgl.config.yaml import parse_config
from asyncdgl.errors import ConfigError
from asyncdgl.plan.memory import buffer_bytes, check_memory
from asyncdgl.rundir import writer as rundir

SCRIPT = Path(sys.executable).parent / "asyncdgl"
CLOSED = "http://127.0.0.1:9"
"""The discard port: nobody listens there, so that a download fails at once and never leaves the machine."""

PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED)

FOLDER = None
"""In ``Case.files``: make an empty folder of that name."""


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        id: names the test.
        args: of `asyncdgl`; ``{cwd}`` stands for the working directory.
        says: what the message must contain.
        files: content of files that lie in the working directory.
        make: makes what text can't describe there.
        env: environment variables.
        problems: how many the message lists.
        process: also run as a process of its own.
    """

    id: str
    args: list[str]
    says: list[str]
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    problems: int = 1
    process: bool = False


def run(*args: str) -> list[str]:
    return ["run", *args]


def sets(*assignments: str) -> list[str]:
    return ["run", *(part for a in assignments for part in ("--set", a))]


def config(id: str, content: str | bytes, *says: str, args: tuple[str, ...] = (), **more: object) -> Case:
    """A wrong ``--config`` file; its name must stand in the message of what is wrong with the file itself."""
    return Case(id, run("--config", "c.yaml", *args), list(says), {"c.yaml": content}, **more)


def profile(id: str, content: str | bytes, *says: str, args: tuple[str, ...] = (), **more: object) -> Case:
    """A wrong ``--delay-profile`` file."""
    return Case(id, run("--delay-profile", "p.yaml", *args), list(says), {"p.yaml": content}, **more)


# --- Unknown names ----------------------------------------------------------------------------------------------------

UNKNOWN_NAMES = [
    Case(
        "dataset-unknown",
        run("--dataset", "digts"),
        ["data.dataset must be one of digits, fashion-mnist", "'digts'", "did you mean digits?"],
        process=True,
    ),
    Case("algorithm-unknown", run("--algorithm", "async-dlg"), ["algorithm must be one of", "did you mean async-dgl?"]),
    Case("runtime-unknown", run("--runtime", "simm"), ["runtime must be one of ray, sim", "did you mean sim?"]),
    Case("sampler-unknown", run("--sampler", "fifoo"), ["buffer.sampler must be one of", "did you mean fifo?"]),
    Case("codec-unknown", run("--codec", "int-8"), ["buffer.codec must be one of none, bf16", "did you mean int8?"]),
    Case("aux-unknown", run("--aux", "mlp_sr"), ["model.aux must be one of mlp, mlp-sr, cnn", "did you mean mlp-sr?"]),
    Case("pace-unknown", run("--pace", "fre"), ["pace must be one of profile, free", "did you mean free?"]),
    Case("precision-unknown", run("--precision", "float16"), ["precision must be one of auto, float32, bf16"]),
    Case("device-unknown", run("--device", "gpu"), ["device must be one of auto, cpu, cuda", "'gpu'"]),
    Case("model-unknown", run("--model", "resnet"), ["model.name must be", "conv", "'resnet'"]),
    Case("on-full-unknown", sets("buffer.on_full=blok"), ["buffer.on_full must be one of", "did you mean block?"]),
    Case(
        "profile-unknown",
        run("--delay-profile", "straglr"),
        ["delays.profile", "'straglr'", "slow_stage<N>", "did you mean straggler?"],
    ),
    Case("profile-slow-stage-typo", run("--delay-profile", "slowstage2"), ["did you mean slow_stage2?"]),
    Case("profile-of-stage-0", run("--delay-profile", "slow_stage0"), ["'slow_stage0'", "slow_stage<N>"]),
    Case("profile-with-a-blank", run("--delay-profile", "slow stage2"), ["'slow stage2'", "did you mean slow_stage2?"]),
    Case("profile-empty", run("--delay-profile", ""), ["delays.profile", "''", "slow_stage<N>"]),
    Case("profile-not-yaml", run("--delay-profile", "p.json"), ["'p.json'", "ends in .yaml"], {"p.json": "{}"}),
    Case("profiles-unknown", ["profiles", "straglr"], ["'straglr'", "did you mean straggler?"]),
    Case("flag-unknown", run("--ecpohs", "3"), ["--ecpohs", "--epochs"], process=True),
    Case("flag-shortened", run("--epoch", "3"), ["--epoch", "--epochs"]),
    Case("command-unknown", ["rnu"], ["rnu", "run"]),
    Case("set-section-unknown", sets("bufer.size=3"), ["bufer: unknown key", "did you mean buffer?"]),
    Case("set-key-unknown", sets("buffer.sise=3"), ["buffer.sise: unknown key", "did you mean size?"]),
    Case("set-key-of-no-section", sets("lr=3"), ["lr: unknown key", "optim.lr"]),
    Case("set-key-below-a-value", sets("buffer.size.x=3"), ["buffer.size", "whole number"]),
    Case(
        "set-profile-key-unknown",
        sets("delays.profile.stages.2.slowdwn=3"),
        ["delays.profile.stages.2.slowdwn: unknown key", "did you mean slowdown?"],
    ),
    config("config-key-unknown", "epcohs: 3\n", "epcohs: unknown key", "did you mean epochs?"),
    config("config-deep-key-unknown", "buffer: {sampeler: fifo}\n", "buffer.sampeler", "did you mean sampler?"),
    config(
        "config-profile-key-unknown",
        "delays: {profile: {evry_stage: {slowdown: 2}}}\n",
        "delays.profile.evry_stage: unknown key",
        "did you mean every_stage?",
    ),
    config(
        "config-profile-stage-key-unknown",
        "delays: {profile: {stages: {2: {slowdwn: 2}}}}\n",
        "delays.profile.stages.2.slowdwn: unknown key",
        "did you mean slowdown?",
    ),
    config(
        "config-profile-link-key-unknown",
        "delays: {profile: {links: {1: {los: 0.5}}}}\n",
        "delays.profile.links.1.los: unknown key",
        "did you mean loss?",
    ),
    config(
        "config-profile-latency-key-unknown",
        "delays: {profile: {every_link: {latency: {maen: 3}}}}\n",
        "delays.profile.every_link.latency.maen: unknown key",
        "did you mean mean?",
    ),
    config(
        "config-profile-pause-key-unknown",
        "delays: {profile: {stages: {2: {pause: {probability: 0.1, length: 2, lenght: 3}}}}}\n",
        "delays.profile.stages.2.pause.lenght: unknown key",
        "did you mean length?",
    ),
]

# --- Values -----------------------------------------------------------------------------------------------------------

VALUES = [
    Case("epochs-0", run("--epochs", "0"), ["epochs must be at least 1, got 0"]),
    Case("epochs-fraction", run("--epochs", "1.5"), ["epochs must be a whole number", "1.5"]),
    Case("epochs-word", run("--epochs", "ten"), ["epochs must be a whole number", "'ten'"]),
    Case("epochs-empty", run("--epochs", ""), ["epochs must be a whole number", "''"]),
    Case("epochs-of-too-many-digits", run("--epochs", "9" * 5000), ["epochs must be a smaller whole number"]),
    Case("set-epochs-fraction", sets("epochs=1.5"), ["epochs must be a whole number, got 1.5"]),
    Case("set-epochs-nothing", sets("epochs="), ["epochs must be a whole number", "None"]),
    Case("set-epochs-truth-value", sets("epochs=true"), ["epochs must be a whole number, got True"]),
    Case("set-epochs-list", sets("epochs=[3]"), ["epochs must be a whole number, got [3]"]),
    Case("stages-0", run("--stages", "0"), ["stages must be at least 1, got 0"]),
    Case("batch-size-1", run("--batch-size", "1"), ["batch_size must be at least 2, got 1"]),
    Case("threads-0", run("--threads", "0"), ["threads must be at least 1, got 0"]),
    Case("ray-threads-word", sets("ray.threads=all"), ["ray.threads must be one of cost", "'all'"]),
    Case("ray-threads-number", sets("ray.threads=2"), ["ray.threads must be a list, got 2"]),
    Case("ray-threads-0", sets("ray.threads=[1, 0, 1, 1]"), ["ray.threads.1 must be at least 1, got 0"]),
    Case("ray-threads-too-few", sets("ray.threads=[1, 2]"), ["a number for each stage (4), got 2"]),
    Case("seed-negative", run("--seed", "-1"), ["seed must be at least 0, got -1"]),
    Case("seed-too-large", run("--seed", str(2**63)), ["seed must be below 9223372036854775808"]),
    Case("lr-0", run("--lr", "0"), ["optim.lr must be above 0"]),
    Case("lr-nan", run("--lr", "nan"), ["optim.lr must be a finite number", "nan"]),
    Case("lr-inf", run("--lr", "inf"), ["optim.lr must be a finite number", "inf"]),
    Case("lr-too-large-for-a-float", run("--lr", "1e999"), ["optim.lr must be a finite number", "1e999"]),
    Case("lr-word", run("--lr", "fast"), ["optim.lr must be a number", "'fast'"]),
    Case("set-lr-truth-value", sets("optim.lr=true"), ["optim.lr must be a number, got True"]),
    Case("set-lr-yaml-nan", sets("optim.lr=.nan"), ["optim.lr must be a finite number"]),
    Case("momentum-1", sets("optim.momentum=1"), ["optim.momentum must be below 1"]),
    Case("weight-decay-negative", sets("optim.weight_decay=-1"), ["optim.weight_decay must be at least 0"]),
    Case("lr-decay-factor-below-1", sets("optim.lr_decay_factor=0.5"), ["optim.lr_decay_factor must be at least 1"]),
    Case("lr-decay-every-0", sets("optim.lr_decay_every=0"), ["optim.lr_decay_every must be at least 1, got 0"]),
    Case("lr-milestones-shrink", sets("optim.lr_milestones=[3, 2]"), ["optim.lr_milestones must grow", "[20, 40]"]),
    Case("lr-milestones-no-list", sets("optim.lr_milestones=5"), ["optim.lr_milestones must be a list, got 5"]),
    Case("validation-1", sets("data.validation=1"), ["data.validation must be below 1"]),
    Case("validation-nan", sets("data.validation=.nan"), ["data.validation must be a finite number"]),
    Case("augment-word", sets("data.augment=perhaps"), ["data.augment must be true or false", "'perhaps'"]),
    Case("data-dir-number", sets("data.dataset=cifar10", "data.data_dir=5"), ["data.data_dir must be a text, got 5"]),
    Case("std-0", sets("data.mean=[0.5]", "data.std=[0]"), ["data.std.0 must be above 0"]),
    Case("mean-of-bytes", sets("data.mean=[125]", "data.std=[0.5]"), ["data.mean.0 must be at most 1", "125"]),
    Case("mean-negative", sets("data.mean=[-0.5]", "data.std=[0.5]"), ["data.mean.0 must be at least 0", "-0.5"]),
    Case("width-0", run("--width", "0"), ["model.width must be at least 1, got 0"]),
    Case("width-too-large", run("--width", "5000"), ["model.width must be at most 4096, got 5000"]),
    Case("blocks-too-many", sets("model.blocks=65"), ["model.blocks must be at most 64, got 65"]),
    Case("downsample-no-list", sets("model.downsample=2,4"), ["model.downsample must be a list", "2,4"]),
    Case("buffer-size-0", run("--buffer-size", "0"), ["buffer.size must be at least 1, got 0"]),
    Case("max-reuse-0", run("--max-reuse", "0"), ["buffer.max_reuse must be at least 1, got 0"]),
    Case("prefetch-too-large", sets("buffer.prefetch=17"), ["buffer.prefetch must be at most 16, got 17"]),
    Case("slowdown-below-1", run("--delay-profile", "slow_stage2", "--slowdown", "0.5"), ["delays.slowdown", "0.5"]),
    Case("slowdown-nan", run("--delay-profile", "slow_stage2", "--slowdown", "nan"), ["delays.slowdown", "finite"]),
    Case("evaluation-every-0", sets("evaluation.every=0"), ["evaluation.every must be at least 1, got 0"]),
    Case("name-with-a-slash", run("--name", "a/b"), ["name may hold letters", "'a/b'"]),
    Case("name-that-climbs", run("--name", "../a"), ["name may hold letters", "'../a'"]),
    Case("name-empty", run("--name", ""), ["name", "''"]),
    Case("name-too-long", run("--name", "n" * 81), ["name", "80"]),
    Case("device-absent", run("--device", "cuda"), ["no NVIDIA GPU", "--device cpu"]),
    Case(
        "several-at-once",
        run("--epochs", "0", "--lr", "nan", "--set", "bufer.size=1"),
        ["epochs must be at least 1", "optim.lr must be a finite number", "bufer: unknown key"],
        problems=3,
        process=True,
    ),
    Case(
        "image-size-without-end",
        run(
            "--dataset", "synthetic", "--stages", "1", "--set", "data.image_size=100000000000000000", "--runtime", "sim"
        ),
        ["data.image_size", "100000000000000000"],
    ),
]

NUMBERS_WITHOUT_END = [
    Case(
        "stages-without-end", run("--stages", "100000000", "--dry-run"), ["stages must be at most 10000"], process=True
    ),
    config("stages-without-end-in-a-file", "stages: 100000000\n", "stages must be at most 10000", args=("--dry-run",)),
    Case("batch-size-of-60-digits", run("--batch-size", "7" * 60), ["batch_size must be"], process=True),
    Case("set-batch-size-of-60-digits", sets("batch_size=" + "7" * 60), ["batch_size must be at most"]),
    Case("set-epochs-of-5000-digits", sets("epochs=" + "7" * 5000), ["epochs"]),
    Case("profile-of-a-stage-without-end", run("--delay-profile", "slow_stage" + "9" * 5000), ["there is no profile"]),
    Case("max-in-flight-without-end", sets("delays.profile.every_link.max_in_flight=" + "7" * 60), ["at most"]),
    Case("name-without-end", run("--name", "n" * 100_000), ["name", "at most 80"]),
    Case("algorithm-without-end", run("--algorithm", "a" * 100_000), ["algorithm must be one of", "aaa..."]),
    config("key-without-end", "a" * 1000 + ": 1\n", "unknown key"),
    config("list-without-end", "model: {downsample: [" + "1, " * 50_000 + "]}\n", "model.downsample", "at most 64"),
    config(
        "problems-without-end",
        "model: {downsample: [" + "0, " * 60 + "]}\n",
        "model.downsample.0 must be at least 1",
        "and 50 more",
        problems=11,
    ),
    config(
        "aliases-without-end",
        "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else 0}]" for n in range(12)) + "\n",
        "a0: unknown key",
        "and 2 more",
        problems=11,
    ),
]

# --- What does not go together ----------------------------------------------------------------------------------------

TOGETHER = [
    Case("backprop-on-ray", run("--algorithm", "backprop", "--runtime", "ray"), ["backprop", "--runtime sim"]),
    Case("more-stages-than-blocks", run("--stages", "5"), ["stages must be at most model.blocks (4)", "got 5"]),
    Case(
        "downsample-out-of-range",
        sets("model.downsample=[2, 7]"),
        ["model.downsample names block 7", "the network has 4 blocks"],
    ),
    Case("downsample-0", sets("model.downsample=[0]"), ["model.downsample.0 must be at least 1, got 0"]),
    Case("downsample-twice", sets("model.downsample=[2, 2]"), ["model.downsample names a block twice"]),
    Case(
        "images-too-small",
        sets("model.downsample=[1, 2, 3]"),
        ["data.image_size 8 is too small for 3 poolings", "model.downsample"],
    ),
    Case("image-size-below-4", sets("data.image_size=3"), ["data.image_size must be at least 4, got 3"]),
    Case(
        "image-size-of-cifar10",
        sets("data.dataset=cifar10", "data.image_size=16"),
        ["data.image_size of cifar10 is 32, got 16"],
    ),
    Case("mean-without-std", sets("data.mean=[0.5]"), ["data.mean and data.std must be given together"]),
    Case(
        "mean-and-std-differ",
        sets("data.mean=[0.5]", "data.std=[0.5, 0.5]"),
        ["data.mean has 1 channels and data.std 2"],
    ),
    Case(
        "min-size-above-size",
        sets("buffer.min_size=11"),
        ["buffer.min_size must be at most buffer.size (10), got 11"],
    ),
    Case(
        "block-without-max-reuse",
        sets("buffer.on_full=block"),
        ["buffer.on_full block needs a finite buffer.max_reuse"],
    ),
    Case(
        "decay-and-milestones",
        sets("optim.lr_decay_every=3", "optim.lr_milestones=[2]"),
        ["optim.lr_decay_every and optim.lr_milestones exclude each other"],
    ),
    Case(
        "profile-of-a-stage-beyond",
        run("--delay-profile", "slow_stage9"),
        ["delays.profile slow_stage9 delays stage 9", "the network has 4 stages"],
        process=True,
    ),
    Case(
        "straggler-with-one-stage",
        run("--delay-profile", "straggler", "--stages", "1"),
        ["delays.profile straggler delays stage 2", "the network has 1 stage"],
    ),
]

SYNC = ("--algorithm", "sync-dgl")
BACKPROP = ("--algorithm", "backprop")
SIM = ("--runtime", "sim")
MOVED = ("runtime=virtual", "virtual.train=false")

WITHOUT_EFFECT = [
    Case("pace-with-sim", run(*SIM, "--pace", "free"), ["pace has no effect", "--runtime ray"]),
    Case("pace-default-with-sim", run(*SIM, "--pace", "profile"), ["pace has no effect", "--runtime ray"]),
    Case("ray-threads-with-sim", run(*SIM, "--set", "ray.threads=cost"), ["ray.threads has no effect"]),
    Case("address-with-sim", run(*SIM, "--address", "10.0.0.5:6379"), ["ray.address has no effect", "--runtime ray"]),
    Case("prefetch-with-sim", [*run(*SIM), *sets("buffer.prefetch=2")[1:]], ["buffer.prefetch has no effect"]),
    Case("slowdown-without-profile", run("--slowdown", "3"), ["delays.slowdown has no effect", "slow_stage<N>"]),
    Case(
        "slowdown-with-random",
        run("--delay-profile", "random", "--slowdown", "3"),
        ["delays.slowdown has no effect", "slow_stage<N>"],
    ),
    Case("sampler-with-sync", run(*SYNC, "--sampler", "lifo"), ["buffer.sampler has no effect", "async-dgl"]),
    Case("max-age-with-sync", [*run(*SYNC), "--set", "buffer.max_age=5"], ["buffer.max_age has no effect"]),
    Case("max-reuse-with-sync", run(*SYNC, "--max-reuse", "5"), ["buffer.max_reuse has no effect", "async-dgl"]),
    Case("buffer-size-with-sync-sim", run(*SYNC, *SIM, "--buffer-size", "5"), ["buffer.size has no effect"]),
    Case("profile-with-sync-sim", run(*SYNC, *SIM, "--delay-profile", "random"), ["delays.profile has no effect"]),
    Case(
        "sampler-with-one-stage",
        run("--stages", "1", "--sampler", "lifo"),
        ["buffer.sampler has no effect", "at least two stages"],
    ),
    Case(
        "buffer-size-with-one-stage",
        run("--stages", "1", "--buffer-size", "5"),
        ["buffer.size has no effect", "at least two stages"],
    ),
    Case("max-age-with-one-stage", run("--stages", "1", "--set", "buffer.max_age=5"), ["buffer.max_age has no effect"]),
    Case("max-age-with-backprop", run(*BACKPROP, "--set", "buffer.max_age=5"), ["buffer.max_age has no effect"]),
    Case("sampler-with-backprop", run(*BACKPROP, "--sampler", "fifo"), ["buffer.sampler has no effect"]),
    Case("codec-with-backprop", run(*BACKPROP, "--codec", "bf16"), ["buffer.codec has no effect", "backprop"]),
    Case(
        "profile-with-backprop",
        run(*BACKPROP, "--delay-profile", "slow_stage2"),
        ["delays.profile has no effect", "async-dgl"],
    ),
    Case("aux-with-backprop", run(*BACKPROP, "--aux", "cnn"), ["model.aux has no effect"]),
    Case("aux-with-one-stage", run("--stages", "1", "--aux", "cnn"), ["model.aux has no effect"]),
    Case("data-dir-with-digits", run("--data-dir", "."), ["data.data_dir has no effect", "read from files"]),
    Case(
        "image-size-for-cifar10",
        sets("data.dataset=cifar10", "data.image_size=32"),
        ["data.image_size has no effect", "image-folder and synthetic"],
    ),
    Case("image-size-for-digits", sets("data.image_size=8"), ["data.image_size has no effect"]),
    config(
        "sampler-in-a-file-with-sync",
        "algorithm: sync-dgl\nbuffer: {sampler: lifo}\n",
        "buffer.sampler has no effect",
        "async-dgl",
    ),
    *(
        Case(
            f"{key}-without-computing",
            sets("runtime=virtual", "virtual.train=false", f"{key}={value}"),
            [key, "compute"],
        )
        for key, value in [
            *(("optim.lr", 0.1), ("optim.momentum", 0.5), ("optim.name", "adam"), ("evaluation.every", 2)),
            *(("model.width", 8), ("model.loss", "cross-entropy"), ("data.augment", "true"), ("threads", 2)),
        ]
    ),
    Case("lr-without-computing", [*sets(*MOVED), "--lr", "0.1"], ["optim.lr has no effect"]),
    Case(
        "decay-factor-without-a-decay",
        sets("optim.lr_decay_every=null", "optim.lr_decay_factor=2"),
        ["optim.lr_decay_factor has no effect", "lr_decay_every"],
    ),
    Case("betas-with-sgd", sets("optim.betas=[0.5, 0.5]"), ["optim.betas has no effect", "adam"]),
    Case("momentum-with-adam", sets("optim.name=adam", "optim.momentum=0.5"), ["optim.momentum has no effect", "sgd"]),
    Case("options-of-conv", sets("model.options.depth=3"), ["model.options", "a network of one's own"]),
    Case(
        "prefetch-with-block",
        sets("buffer.on_full=block", "buffer.max_reuse=1", "buffer.prefetch=2"),
        ["buffer.prefetch must be at most 1 where buffers block"],
    ),
    profile("window-with-sim", "window: 1\n", "delays.profile.window has no effect", "--runtime ray", args=SIM),
    profile("window-with-pace-free", "window: 1\n", "delays.profile.window has no", args=("--pace", "free")),
    profile(
        "max-in-flight-with-block",
        "every_link: {latency: {mean: 1}, max_in_flight: 3}\n",
        "max_in_flight has no effect",
        "overwrite",
        args=("--max-reuse", "1", "--set", "buffer.on_full=block"),
    ),
    config("pace-in-a-file-with-sim", "runtime: sim\npace: free\n", "pace has no effect", "--runtime ray"),
    Case(
        "whole-section-set-with-sync",
        [*run(*SYNC), "--set", "buffer={sampler: lifo}"],
        ["buffer.sampler has no effect"],
    ),
]

# --- Syntax -----------------------------------------------------------------------------------------------------------

SYNTAX = [
    Case("no-command", [], ["command", "run"]),
    Case("positional-argument", run("digits"), ["unexpected", "digits"], process=True),
    Case("value-missing", run("--epochs"), ["--epochs", "requires an argument"]),
    Case("value-for-a-switch", run("--dry-run=yes"), ["--dry-run", "does not take a value"]),
    Case("profiles-two-names", ["profiles", "none", "wan"], ["unexpected", "wan"]),
    Case("set-without-equals", run("--set", "buffer.size"), ["--set buffer.size: expected KEY=VALUE"]),
    Case("set-without-key", run("--set", "=5"), ["--set =5: expected KEY=VALUE"]),
    Case("set-key-with-a-gap", run("--set", "buffer..size=5"), ["expected KEY=VALUE"]),
    Case("set-key-ends-with-a-dot", run("--set", "buffer.=5"), ["expected KEY=VALUE"]),
    Case("set-broken-yaml", run("--set", "optim.lr_milestones=[1"), ["--set optim.lr_milestones: not valid YAML"]),
    Case(
        "set-yaml-tag",
        run("--set", "name=!!python/object/apply:os.mkdir [made]"),
        ["--set name: not valid YAML", "tag"],
    ),
    Case("set-a-section-to-a-value", sets("buffer=5"), ["buffer must be a mapping of keys to values, got 5"]),
    Case("set-below-a-value", sets("buffer=5", "buffer.size=3"), ["buffer.size: buffer is a value, not a section"]),
]

# --- Files ------------------------------------------------------------------------------------------------------------

MAKE_FOLDER = "!!python/object/apply:os.mkdir [made]"

CONFIG_FILES = [
    config("config-broken", "epochs: [1\nseed: 3\n", "config file c.yaml: not valid YAML", "line 2", process=True),
    config("config-tab", "buffer:\n\tsize: 3\n", "config file c.yaml: not valid YAML", "line 2"),
    config(
        "config-of-a-sweep",
        "config: {runtime: sim}\ngrid: {buffer.size: [1, 3]}\nseeds: 3\n",
        "config file c.yaml: this is the file of a sweep (it has grid, seeds)",
        "`asyncdgl sweep c.yaml`",
    ),
    config("config-buffer-size", "buffer_size: 3\n", "buffer_size: unknown key", "did you mean buffer.size?"),
    config("config-of-5-mb", "model: {downsample: [" + "1, " * 1_700_000 + "]}\n", "c.yaml: larger than 256 KB"),
    Case(
        "config-is-a-fifo",
        run("--config", "c.yaml"),
        ["config file c.yaml: not a regular file"],
        make=lambda cwd: os.mkfifo(cwd / "c.yaml"),
        process=True,
    ),
    Case(
        "config-is-a-device", run("--config", "/dev/zero"), ["config file /dev/zero: not a regular file"], process=True
    ),
    config("config-with-a-nul", 'delays: {profile: "a\\0b.yaml"}\n', "delay profile", "NUL", process=True),
    config("config-list", "- epochs\n", "config file c.yaml: expected a mapping", "got a list"),
    config("config-text", "epochs\n", "config file c.yaml: expected a mapping", "got a text"),
    config("config-number", "5\n", "config file c.yaml: expected a mapping", "got a number"),
    config("config-truth-value", "true\n", "config file c.yaml: expected a mapping", "true"),
    config("config-repeated-key", "seed: 1\nseed: 2\n", "config file c.yaml", "seed", "line 2"),
    config("config-repeated-deep-key", "optim:\n  lr: 1\n  lr: 2\n", "config file c.yaml", '"lr"', "line 3"),
    config("config-python-object", f"name: {MAKE_FOLDER}\n", "config file c.yaml", "python/object", "line 1"),
    config("config-custom-tag", "buffer: !buffer {size: 3}\n", "config file c.yaml", "!buffer", "line 1"),
    config("config-not-utf8", "name: caf\xe9\n".encode("latin-1"), "config file c.yaml: not a text file in UTF-8"),
    config("config-control-character", b"name: a\x00b\n", "config file c.yaml: not valid YAML"),
    config("config-two-documents", "seed: 1\n---\nseed: 2\n", "config file c.yaml: not valid YAML", "single document"),
    config("config-anchor-unknown", "seed: *one\n", "config file c.yaml: not valid YAML", "one"),
    config("config-key-that-is-a-number", "1: 2\n", "1", "key"),
    config("config-key-that-is-a-list", "? [1]\n: 2\n", "key"),
    config("config-section-of-a-value", "delays: slow_stage2\n", "delays must be a mapping", "'slow_stage2'"),
    config("config-section-empty", "optim:\n", "optim must be a mapping of keys to values"),
    config("config-wrong-type", "epochs: many\n", "epochs must be a whole number, got 'many'"),
    config("config-date-as-name", "name: 2020-01-01\n", "name must be a text"),
    Case("config-missing", run("--config", "c.yaml"), ["config file c.yaml", "No such file"], process=True),
    Case("config-is-a-folder", run("--config", "c"), ["config file c", "directory"], {"c": FOLDER}),
    Case("config-name-empty", run("--config", ""), ["config file", "directory"]),
]

PROFILE_FILES = [
    Case(
        "profile-file-missing",
        run("--delay-profile", "p.yaml"),
        ["delay profile p.yaml", "No such file"],
    ),
    Case(
        "profile-file-is-a-folder",
        run("--delay-profile", "p.yaml"),
        ["delay profile p.yaml", "directory"],
        {"p.yaml": FOLDER},
    ),
    profile("profile-file-empty", "", "delay profile p.yaml: the file is empty", "asyncdgl profiles", process=True),
    profile("profile-file-of-comments", "# slow\n", "delay profile p.yaml: the file is empty"),
    profile("profile-file-broken", "unit: [steps\n", "delay profile p.yaml: not valid YAML"),
    profile("profile-file-list", "- unit\n", "delay profile p.yaml: expected a mapping", "got a list"),
    profile("profile-file-text", "slow\n", "delay profile p.yaml: expected a mapping", "got a text"),
    profile("profile-file-repeated-key", "window: 1\nwindow: 2\n", "delay profile p.yaml", "window", "line 2"),
    profile(
        "profile-file-repeated-stage",
        "stages:\n  2: {slowdown: 2}\n  '2': {slowdown: 3}\n",
        "stages",
        "2",
    ),
    profile("profile-file-tag", f"name: {MAKE_FOLDER}\n", "delay profile p.yaml", "python/object"),
    profile("profile-file-not-utf8", b"name: \xff\xfe\n", "delay profile p.yaml: not a text file in UTF-8"),
    profile("profile-unknown-key", "window_size: 2\n", "window_size: unknown key", "did you mean window?"),
    profile("profile-unit-unknown", "unit: minutes\n", "unit must be one of steps, seconds", "'minutes'"),
    profile(
        "profile-law-unknown",
        "every_link: {latency: {law: lognorml, mean: 3}}\n",
        "every_link.latency.law must be one of",
        "did you mean lognormal?",
    ),
    profile("profile-step-law-unknown", "every_stage: {step_law: uniform}\n", "step_law must be one of constant"),
    profile(
        "profile-sigma-on-constant",
        "every_link: {latency: {law: constant, mean: 3, sigma: 1}}\n",
        "every_link.latency",
        "sigma applies only to the law lognormal",
    ),
    profile(
        "profile-spread-above-mean",
        "links: {1: {latency: {law: uniform, mean: 3, spread: 4}}}\n",
        "links.1.latency",
        "spread must be at most the mean (3)",
    ),
    profile("profile-mean-negative", "every_link: {latency: {mean: -1}}\n", "every_link.latency.mean must be at least"),
    profile(
        "profile-stage-beyond",
        "stages: {5: {slowdown: 2}}\n",
        "delays.profile p delays stage 5",
        "the network has 4 stages",
    ),
    profile("profile-stage-0", "stages: {0: {slowdown: 2}}\n", "stages", "must be at least 1, got 0"),
    profile("profile-stage-named", "stages: {two: {slowdown: 2}}\n", "stages", "must be a whole number, got 'two'"),
    profile("profile-stages-list", "stages: [{slowdown: 2}]\n", "delays.profile.stages must be a mapping"),
    profile(
        "profile-link-beyond",
        "links: {4: {loss: 0.5}}\n",
        "delays.profile p delays link 4",
        "the network has 3 links",
    ),
    profile(
        "profile-seconds-with-sim",
        "unit: seconds\nevery_link: {latency: {mean: 3}}\n",
        "in seconds",
        "sim has no clock",
        "steps",
        args=SIM,
    ),
    profile("profile-loss-1", "every_link: {loss: 1}\n", "every_link.loss must be below 1"),
    profile("profile-loss-nan", "every_link: {loss: .nan}\n", "every_link.loss must be a finite number"),
    profile("profile-bandwidth-0", "every_link: {bandwidth: 0}\n", "every_link.bandwidth must be above 0"),
    profile("profile-slowdown-below-1", "stages: {2: {slowdown: 0.5}}\n", "stages.2.slowdown must be at least 1"),
    profile(
        "profile-pause-negative",
        "stages: {2: {pause: {probability: 0.1, length: -5}}}\n",
        "stages.2.pause.length must be at least 0",
    ),
    profile(
        "profile-pause-probability",
        "stages: {2: {pause: {probability: 2, length: 5}}}\n",
        "stages.2.pause.probability must be at most 1",
    ),
    profile(
        "profile-pause-without-length",
        "stages: {2: {pause: {probability: 0.1}}}\n",
        "stages.2.pause.length is missing",
    ),
    profile("profile-slowdown-beside-file", "window: 1\n", "delays.slowdown has no effect", args=("--slowdown", "3")),
    config("inline-profile-a-number", "delays: {profile: 5}\n", "delays.profile must be", "got 5"),
    config("inline-profile-nothing", "delays: {profile: }\n", "delays.profile must be"),
    config("inline-profile-loss", "delays: {profile: {links: {1: {loss: 1.5}}}}\n", "delays.profile.links.1.loss"),
    config("profile-file-of-a-config-missing", "delays: {profile: q.yaml}\n", "delay profile q.yaml", "No such file"),
]

# --- Data -------------------------------------------------------------------------------------------------------------


def images(*paths: str) -> Callable[[Path], None]:
    """Makes a tiny picture at each of the paths below ``data``."""

    def make(cwd: Path) -> None:
        for number, path in enumerate(paths):
            file = cwd / "data" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number % 255, 90, 200)).save(file)

    return make


WHOLE = ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")


def cut_short(cwd: Path) -> None:
    images(*WHOLE)(cwd)
    file = cwd / "data/train/b/1.jpg"
    file.write_bytes(file.read_bytes()[:200])


def folder(*args: str) -> list[str]:
    return run("--dataset", "image-folder", "--data-dir", "data", *SIM, *args)


SMALL_NETWORK = ("--stages", "2", "--width", "4", "--set", "data.image_size=8")

DATA = [
    Case(
        "data-dir-not-given", run("--dataset", "image-folder"), ["image-folder needs --data-dir DIR", "train/<class>"]
    ),
    Case("data-dir-missing", folder(), ["data/train is no folder", "train/<class>/", "test/<class>/"], process=True),
    Case("data-dir-empty", folder(), ["data/train is no folder"], {"data": FOLDER}),
    Case("data-dir-empty-dry-run", folder("--dry-run"), ["data/train is no folder"], {"data": FOLDER}),
    Case("data-dir-a-file", folder(), ["data/train is no folder"], {"data": "x"}),
    Case("data-dir-name-too-long", run("--dataset", "image-folder", "--data-dir", "d" * 300), ["d" * 300]),
    Case("data-without-test", folder(), ["data/test is no folder"], make=images("train/a/1.png")),
    Case("data-train-a-file", folder(), ["data/train is no folder"], {"data/train": "x"}),
    Case("data-without-classes", folder(), ["data/train has no class folders"], {"data/train": FOLDER}),
    Case("data-images-not-in-classes", folder(), ["data/train has no class folders"], make=images("train/1.png")),
    Case(
        "data-empty-class",
        folder(),
        ["data/train/b is empty", "every class needs images"],
        {"data/train/b": FOLDER},
        make=images("train/a/1.png", "test/a/1.png"),
    ),
    Case(
        "data-empty-class-dry-run",
        folder("--dry-run"),
        ["data/test/b is empty"],
        {"data/test/b": FOLDER},
        make=images("train/a/1.png", "train/b/1.png"),
    ),
    Case(
        "data-classes-differ",
        folder(*SMALL_NETWORK),
        ["train and test must have the same classes", "only in one of them: c"],
        make=images("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "test/c/1.png"),
    ),
    Case("data-image-cut-short", folder(*SMALL_NETWORK), ["data/train/b/1.jpg can't be read"], make=cut_short),
    Case(
        "batch-larger-than-the-set",
        run("--dataset", "synthetic", *SIM, "--batch-size", "3000", "--width", "1"),
        ["the training set has 2048 images, fewer than one batch of 3000", "--batch-size"],
    ),
    Case(
        "validation-leaves-less-than-a-batch",
        run("--dataset", "synthetic", *SIM, "--set", "data.validation=0.99"),
        ["fewer than one batch of 32", "data.validation"],
    ),
    Case(
        "validation-of-no-image",
        run("--dataset", "synthetic", *SIM, "--set", "data.validation=0.0001"),
        ["data.validation 0.0001 of 2048 images is none", "larger"],
    ),
    Case(
        "mean-of-other-channels",
        run("--dataset", "synthetic", *SIM, "--set", "data.mean=[0.5]", "--set", "data.std=[0.5]"),
        ["data.mean has 1 channel", "the images have 3"],
    ),
    Case(
        "fashion-no-download",
        run("--dataset", "fashion-mnist", "--data-dir", "data", *SIM),
        ["data", "train-images-idx3-ubyte", "--data-dir"],
        {"data": FOLDER},
        env=PROXIES,
    ),
    Case(
        "cache-is-a-file",
        run("--dataset", "synthetic", *SIM),
        ["cache", "can't be written", "ASYNCDGL_CACHE"],
        {"cache-file": "x"},
        env={"ASYNCDGL_CACHE": "cache-file"},
    ),
]

# --- The run directory ------------------------------------------------------------------------------------------------

OUT = [
    Case(
        "out-not-empty",
        run(*SIM, "--out", "o"),
        ["--out o exists and is not empty", "choose another"],
        {"o/summary.json": "{}"},
        process=True,
    ),
    Case("out-not-empty-dry-run", run("--dry-run", "--out", "o"), ["--out o exists and is not empty"], {"o/x": "x"}),
    Case("out-is-a-file", run(*SIM, "--out", "o"), ["--out o exists and is no folder"], {"o": "x"}),
    Case("out-below-a-file", run(*SIM, "--out", "o/p/q"), ["--out o/p/q can't be made", "o is no folder"], {"o": "x"}),
    Case("out-below-a-file-dry-run", run("--dry-run", "--out", "o/p"), ["--out o/p can't be made"], {"o": "x"}),
    Case("out-empty-name", run(*SIM, "--out", ""), ["--out"]),
    Case("out-name-too-long", run(*SIM, "--out", "o" * 300), ["--out", "can't be made"]),
    Case(
        "out-is-a-dangling-link",
        run(*SIM, "--out", "o"),
        ["--out o exists and is no folder"],
        make=lambda cwd: (cwd / "o").symlink_to("nowhere"),
    ),
    Case(
        "runs-is-a-file",
        run("--dataset", "synthetic", *SIM),
        ["run directory can't be made", "runs", "--out"],
        {"runs": "x"},
    ),
]

# --- Memory -----------------------------------------------------------------------------------------------------------

MEMORY = [
    Case(
        "buffers-too-large-sim",
        run(*SIM, "--buffer-size", "1000000000"),
        ["buffer.size 1000000000", "this machine can give", "--buffer-size ", "would fit"],
        process=True,
    ),
    Case("buffers-too-large-ray", run("--buffer-size", "1000000000"), ["buffer.size 1000000000", "would fit"]),
    Case("buffers-beyond-64-bits", run(*SIM, "--buffer-size", str(10**30)), ["buffer.size must be at most"]),
    Case(
        "one-entry-too-large",
        run(*SIM, "--batch-size", "1000000000"),
        ["not even one mini-batch fits", "--batch-size"],
    ),
]

# --- Ray addresses ----------------------------------------------------------------------------------------------------

START = "ray start --head"


def address(id: str, value: str, *says: str, **more: object) -> Case:
    return Case(f"address-{id}", run("--address", value), list(says), **more)


ADDRESSES = [
    address("closed", "127.0.0.1:1", "127.0.0.1:1", "nobody answers", START, process=True),
    address("closed-ipv6", "[::1]:1", "[::1]:1", "nobody answers", START),
    address("without-port", "10.0.0.5", "must be HOST:PORT", "10.0.0.5:6379", "got '10.0.0.5'"),
    address("without-host", ":6379", "must be HOST:PORT", "got ':6379'"),
    address("port-a-word", "10.0.0.5:ray", "must be HOST:PORT"),
    address("port-superscript", "127.0.0.1:6\u00b2", "must be HOST:PORT"),
    address("port-0", "127.0.0.1:0", "must be HOST:PORT"),
    address("port-too-large", "127.0.0.1:65536", "must be HOST:PORT"),
    address("with-scheme", "ray://127.0.0.1:10001", "must be HOST:PORT", "ray://"),
    address("with-a-path", "http://127.0.0.1:8265/x", "must be HOST:PORT"),
    address("empty", "", "ray.address", "HOST:PORT"),
    address("label-too-long", f"{'h' * 70}.example:6379", "ray.address"),
    address("blank", "local host:6379", "ray.address"),
    Case(
        "address-from-environment-closed",
        run(),
        ["127.0.0.1:1", "nobody answers", "RAY_ADDRESS"],
        env={"RAY_ADDRESS": "127.0.0.1:1"},
        process=True,
    ),
    Case(
        "address-auto-without-a-cluster",
        run(),
        ["RAY_ADDRESS auto", "ray start --head", "HOST:PORT"],
        env={"RAY_ADDRESS": "auto", "RAY_TMPDIR": "/nowhere"},
    ),
    Case(
        "address-from-environment-malformed",
        run(),
        ["RAY_ADDRESS", "HOST:PORT", "got 'head'"],
        env={"RAY_ADDRESS": "head"},
    ),
]

ANSWER_WITHIN_S = 5.0

CASES = [
    *UNKNOWN_NAMES,
    *VALUES,
    *NUMBERS_WITHOUT_END,
    *TOGETHER,
    *WITHOUT_EFFECT,
    *SYNTAX,
    *CONFIG_FILES,
    *PROFILE_FILES,
    *DATA,
    *OUT,
    *MEMORY,
    *ADDRESSES,
]


# --- Checks -----------------------------------------------------------------------------------------------------------


def contents(top: Path) -> dict[str, bytes | str]:
    """Everything below a folder: what is in each file, where each link leads."""
    found: dict[str, bytes | str] = {}
    for path in sorted(top.rglob("*")):
        kind = f"link to {path.readlink()}" if path.is_symlink() else "folder"
        found[str(path.relative_to(top))] = path.read_bytes() if path.is_file() else kind
    return found


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a cache of its own beside it."""
    monkeypatch.setenv("ASYNCDGL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The program takes SIGINT and SIGTERM for itself; pytest needs them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def furnish(case: Case, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out the files of a case and set its environment."""
    for name, content in case.files.items():
        path = cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
    if case.make is not None:
        case.make(cwd)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Exit code of `asyncdgl` in this process."""

    def begin(writer: rundir.RunWriter, path: Path) -> None:
        pytest.fail("the wrong input was accepted: training would begin now")

    monkeypatch.setattr(rundir.RunWriter, "__init__", begin)
    monkeypatch.setattr(sys, "argv", ["asyncdgl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def check(case: Case, code: int | str | None, stdout: str, stderr: str) -> None:
    """What every refusal has in common, and what this one must say."""
    assert code == 2, stdout + stderr
    assert stderr.startswith("Error: ")
    assert (stdout + stderr).count("Error:") == 1, stderr
    assert "Traceback" not in stdout + stderr
    missing = [fragment for fragment in case.says if fragment not in stderr]
    assert not missing, f"the message lacks {missing}:\n{stderr}"
    assert stderr.count("\n  - ") == (case.problems if case.problems > 1 else 0), stderr


def check_nothing_made(cwd: Path, before: Mapping[str, bytes | str]) -> None:
    """The working directory is as it was, and nothing half-made lies in the cache."""
    assert contents(cwd) == before
    assert not list(cwd.parent.glob("cache/.*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused(case: Case, cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    furnish(case, cwd, monkeypatch)
    before = contents(cwd)
    began = time.monotonic()
    code = call(case.args, monkeypatch)
    seconds = time.monotonic() - began
    check(case, code, *capsys.readouterr())
    check_nothing_made(cwd, before)
    if case in ADDRESSES:
        assert seconds < ANSWER_WITHIN_S


@pytest.mark.parametrize("case", [case for case in CASES if case.process], ids=lambda case: case.id)
def test_refused_by_the_installed_program(case: Case, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(case, cwd, monkeypatch)
    before = contents(cwd)
    done = subprocess.run([SCRIPT, *case.args], capture_output=True, text=True, timeout=60, check=False)
    check(case, done.returncode, done.stdout, done.stderr)
    check_nothing_made(cwd, before)


def test_the_table_is_large_and_names_each_case_once() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids) >= 70
    assert sum(case.process for case in CASES) >= 10


# --- What a table can't hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_out_in_a_folder_of_someone_else(mode: int) -> None:
    """Root may write everywhere, so that a test run by root gives its rights away first."""
    program = (
        "import os, sys\n"
        "from asyncdgl import rundir\n"
        "import asyncdgl.algorithms.async_dgl, asyncdgl.cli.run, asyncdgl.data.digits, asyncdgl.rundir.writer\n"
        "from asyncdgl.cli.main import main\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([])\n"
        "    os.setresgid(65534, 65534, 65534)\n"
        "    os.setresuid(65534, 65534, 65534)\n"
        "main()\n"
    )
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        theirs = Path(top) / "theirs"
        theirs.mkdir()
        theirs.chmod(mode)
        arguments = ["run", *SIM, "--out", str(theirs / "deep" / "run")]
        environment = {**os.environ, "ASYNCDGL_CACHE": f"{top}/cache"}
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=top,
            env=environment,
        )
        theirs.chmod(0o755)
        case = Case("out", arguments, [f"--out {theirs}/deep/run can't be made", str(theirs)])
        check(case, done.returncode, done.stdout, done.stderr)
        assert contents(Path(top)) == {"theirs": "folder"}


def test_a_buffer_size_that_is_said_to_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    with pytest.raises(ConfigError) as refused:
        check_memory(parse_config({"runtime": "sim", "buffer": {"size": 10**9}}))
    said = re.search(r"--buffer-size (\d+) would fit", str(refused.value))
    assert said is not None
    size = int(said[1])
    check_memory(parse_config({"runtime": "sim", "buffer": {"size": size}}))
    with pytest.raises(ConfigError):
        check_memory(parse_config({"runtime": "sim", "buffer": {"size": size + 1}}))


def test_entries_that_stay_on_a_gpu_must_fit_there(monkeypatch) -> None:
    config = parse_config({"runtime": "sim", "device": "cuda"})
    need = sum(buffer_bytes(config))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2 * need, 10 * need))
    check_memory(config)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (need, 10 * need))
    with pytest.raises(ConfigError, match="this machine can give"):
        check_memory(config)
    check_memory(parse_config({"runtime": "ray", "device": "cuda"}))


def test_an_address_that_takes_no_more_callers(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that drops packets looks like this: a connection that neither opens nor fails."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        with pytest.raises(TimeoutError):
            while len(waiting) < 50:
                waiting.append(socket.create_connection(server.getsockname(), timeout=0.3))
        where = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        code = call(run("--address", where), monkeypatch)
        seconds = time.monotonic() - began
        for connection in waiting:
            connection.close()
    check(Case("dropped", [], [where, "nobody answers", START]), code, *capsys.readouterr())
    check_nothing_made(cwd, {})
    assert seconds < ANSWER_WITHIN_S


class _WebServer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


def test_an_address_where_something_else_than_ray_answers(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _WebServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        where = f"127.0.0.1:{server.server_address[1]}"
        try:
            began = time.monotonic()
            code = call(run("--dataset", "synthetic", "--address", where), monkeypatch)
            seconds = time.monotonic() - began
        finally:
            server.shutdown()
    check(Case("no-ray", [], [where, "Ray"]), code, *capsys.readouterr())
    check_nothing_made(cwd, {})
    assert seconds < ANSWER_WITHIN_S
