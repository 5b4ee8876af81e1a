"""`asyncdgl run`: check everything, then make the run directory, train, and leave figures and a summary."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from pydantic import BaseModel

from asyncdgl.config import RunConfig
from asyncdgl.config_file import load_yaml, parse_assignment, parse_config, set_key
from asyncdgl.defaults import merged
from asyncdgl.errors import AsyncDGLError, ConfigError, DataError, StageFailed

if TYPE_CHECKING:
    from asyncdgl.cli.display import RunDisplay
    from asyncdgl.cli.signals import Signals
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.rundir import RunWriter
    from asyncdgl.runtime.base import Outcome

FLAGS: dict[str, dict[str, str]] = {
    "Run": {
        "--name": "name",
        "--algorithm": "algorithm",
        "--runtime": "runtime",
        "--pace": "pace",
        "--stages": "stages",
        "--epochs": "epochs",
        "--batch-size": "batch_size",
        "--seed": "seed",
        "--precision": "precision",
        "--device": "device",
        "--threads": "threads",
    },
    "Data": {"--dataset": "data.dataset", "--data-dir": "data.data_dir"},
    "Model": {"--model": "model.name", "--width": "model.width", "--aux": "model.aux"},
    "Replay buffers": {
        "--buffer-size": "buffer.size",
        "--sampler": "buffer.sampler",
        "--max-reuse": "buffer.max_reuse",
        "--codec": "buffer.codec",
    },
    "Optimizer": {"--lr": "optim.lr"},
    "Delays": {"--delay-profile": "delays.profile", "--slowdown": "delays.slowdown"},
    "Ray": {"--address": "ray.address"},
}
KEYS = {flag: key for flags in FLAGS.values() for flag, key in flags.items()}
LOG_TAIL_BYTES = 20_000
STOPPED = {130: "interrupted", 143: "terminated"}
"""Exit codes of runs that a signal stopped, and their status."""


def _described(key: str) -> tuple[str, Any]:
    """Description and default (of the digits) of a key."""
    model: type[BaseModel] = RunConfig
    *sections, last = key.split(".")
    value: Any = RunConfig.model_validate({})
    for section in sections:
        model = cast("type[BaseModel]", model.model_fields[section].annotation)
        value = getattr(value, section)
    field = model.model_fields[last]
    choices = getattr(field.annotation, "__args__", ())
    listed = f" [{', '.join(choices)}]" if choices and all(isinstance(c, str) for c in choices) else ""
    return f"{field.description}{listed}", getattr(value, last)


class _GroupedCommand(click.Command):
    """Shows the options in the groups of the configuration, with their defaults."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        by_name = {p.opts[0]: p for p in self.get_params(ctx) if isinstance(p, click.Option)}
        for group, flags in FLAGS.items():
            with formatter.section(group):
                formatter.write_dl([(f"{flag} VALUE", self._help(flag)) for flag in flags])
        with formatter.section("Files and the rest"):
            others = (p.get_help_record(ctx) for name, p in by_name.items() if name not in KEYS)
            formatter.write_dl([record for record in others if record])

    @staticmethod
    def _help(flag: str) -> str:
        description, default = _described(KEYS[flag])
        return description if default is None else f"{description} (default: {default})"


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag, key in reversed(KEYS.items()):
        command = click.option(flag, key.replace(".", "__"), metavar="VALUE")(command)
    return command


@click.command(cls=_GroupedCommand)
@_flags
@click.option(
    "--config", "config_file", type=Path, metavar="FILE", help="YAML file with any keys of the configuration."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key, for example buffer.min_size=5."
)
@click.option("--out", type=Path, metavar="DIR", help="The run directory itself (default: runs/<time>-<name>).")
@click.option(
    "--dry-run", is_flag=True, help="Print the configuration, the stages' cost and the memory needed, and end."
)
def run(
    config_file: Path | None, assignments: tuple[str, ...], out: Path | None, dry_run: bool, **flags: str | None
) -> int:
    """Train one network, and leave a run directory with its numbers and figures.

    Defaults are those of the digits data set; other data sets have their own (see the README, or --dry-run). A flag
    beats --set, which beats --config.
    """
    config = _configure(config_file, assignments, {k.replace("__", "."): v for k, v in flags.items() if v is not None})
    from asyncdgl.rundir import check_out

    if out is not None:
        check_out(out)
    if dry_run:
        from asyncdgl.cli.dry_run import show_dry_run

        show_dry_run(config)
        return 0
    from asyncdgl.cli.memory import check_memory

    if config.runtime == "ray":
        from asyncdgl.runtime.ray_cluster import check_address, wanted_address

        address = wanted_address(config.ray.address)
        if address is None:
            check_memory(config)
        else:
            check_address(address)
    else:
        check_memory(config)
    return _Session(config, out).execute()


def _configure(config_file: Path | None, assignments: Collection[str], flags: dict[str, str]) -> RunConfig:
    tree = load_yaml(config_file) if config_file is not None else {}
    typed: dict[str, Any] = {}
    given = set(flags)
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        set_key(typed, key, value)
        given.add(key)
    for key, text in flags.items():
        set_key(typed, key, text)
    return _on_this_machine(parse_config(merged(tree, typed), given))


def _on_this_machine(config: RunConfig) -> RunConfig:
    """Everything that ``auto`` leaves open, decided; and paths that don't depend on the working directory."""
    has_gpu = os.path.exists("/dev/nvidia0")
    if config.device == "cuda" and not has_gpu and config.ray.address is None and "RAY_ADDRESS" not in os.environ:
        raise ConfigError("device cuda: this machine has no NVIDIA GPU; use --device cpu")
    device = ("cuda" if has_gpu else "cpu") if config.device == "auto" else config.device
    precision = ("bf16" if device == "cuda" else "float32") if config.precision == "auto" else config.precision
    data = config.data
    if data.data_dir is not None:
        data = data.model_copy(update={"data_dir": os.path.abspath(data.data_dir)})
    return config.model_copy(update={"device": device, "precision": precision, "data": data})


class _Session:
    """One run from its checked configuration to its end, however it ends."""

    def __init__(self, config: RunConfig, out: Path | None) -> None:
        self._config = config
        self._out = out
        self._began = time.monotonic()
        self._status = "failed"
        self._error: str | None = None

    def execute(self) -> int:
        """Run; returns the exit code."""
        from asyncdgl.cli.signals import Interrupted, Signals

        signals = Signals()
        signals.install()
        try:
            folder, dataset = self._prepare_data()
        except Interrupted as interrupt:
            click.echo(f"Stopped by {interrupt} before anything was computed.", err=True)
            return interrupt.exit_code
        data = self._config.data.model_copy(update={"mean": dataset.mean, "std": dataset.std})
        self._config = self._config.model_copy(update={"data": data})
        with signals.deferred():
            return self._run_in_directory(folder, dataset, signals)

    def _prepare_data(self) -> tuple[Path, Dataset]:
        from asyncdgl.data.cache import prepare
        from asyncdgl.runtime.base import open_dataset

        def on_progress(done: int, total: int) -> None:
            if done % 10_000 == 0:
                click.echo(f"decoding images: {done} of {total}")

        folder = prepare(self._config.data, on_progress)
        return folder, open_dataset(self._config, folder)

    def _run_in_directory(self, folder: Path, dataset: Dataset, signals: Signals) -> int:
        from asyncdgl.cli.display import RunDisplay, show_summary
        from asyncdgl.cli.environment import describe_environment
        from asyncdgl.cli.signals import Interrupted, end_process
        from asyncdgl.rundir import RunWriter, make_run_dir

        path = make_run_dir(self._out, self._config.name)
        writer = RunWriter(path)
        environment = describe_environment(self._config, dataset.sha256)
        signals.emergency = lambda code: self._give_up(writer, code)
        code, outcome = 1, None
        with RunDisplay(self._config, writer) as display:
            try:
                writer.write_config(self._config)
                writer.write_environment(environment)
                display.say(f"run directory: {path}")
                outcome = self._train(folder, path, display, signals)
                self._status, code = "completed", 0
            except Interrupted as interrupt:
                outcome = self._partial
                code = interrupt.exit_code
                self._status = STOPPED[code]
            except SystemExit:  # Ray's answer to SIGTERM while it starts
                self._status, code = STOPPED[143], 143
            except (ConfigError, DataError):  # found only once the cluster was asked: nothing was computed
                writer.close()
                shutil.rmtree(path)
                raise
            except Exception as error:
                outcome = self._partial
                self._error = self._explain(error, writer, outcome)
        summary = self._finish(writer, outcome, environment)
        if self._status == "completed":
            self._draw(path)
        show_summary(summary, self._config.profile.name)
        click.echo(f"results: {path}")
        if self._error is not None:
            click.echo(f"Error: {self._error}", err=True)
        elif self._status != "completed":
            click.echo(
                f"The run was stopped before its end; what it computed is in {path}. "
                f"`asyncdgl run --config {path}/config.yaml` repeats it from the start.",
                err=True,
            )
        if code in STOPPED:
            end_process(code)
        return code

    def _give_up(self, writer: RunWriter, code: int) -> None:
        """The main thread did not get to its end in time: write the least, and end what would outlive this process."""
        from asyncdgl.cli.summary import make_summary
        from asyncdgl.runtime.ray_cluster import end_local_cluster

        end_local_cluster()
        if not (writer.path / "summary.json").exists():
            wall_seconds = time.monotonic() - self._began
            writer.write_summary(make_summary(self._config, writer, None, STOPPED[code], None, wall_seconds))

    _partial: Outcome | None = None

    def _train(self, folder: Path, path: Path, display: RunDisplay, signals: Signals) -> Outcome:
        if self._config.runtime == "sim":
            from asyncdgl.runtime.simulator import Simulation

            simulation = Simulation(self._config, folder, display, signals.check)
            try:
                simulation.run()
            finally:
                self._partial = simulation.outcome()
            return self._partial
        return self._train_on_ray(folder, path, display, signals)

    def _train_on_ray(self, folder: Path, path: Path, display: RunDisplay, signals: Signals) -> Outcome:
        from asyncdgl.runtime.ray_cluster import ray_cluster

        display.noticed("starting Ray")
        with ray_cluster(self._config, path):
            from asyncdgl.runtime.ray_runtime import RayRun

            signals.take()
            signals.check()
            ray_run = RayRun(self._config, folder, display, signals.check)
            try:
                ray_run.start()
                ray_run.run()
            except BaseException:
                ray_run.stop()
                raise
            finally:
                self._partial = ray_run.outcome()
                ray_run.close()
        return self._partial

    def _explain(self, error: Exception, writer: RunWriter, outcome: Outcome | None) -> str:
        """One sentence for a failed run; the tail of the failed process's log goes to the run directory."""
        if isinstance(error, StageFailed) and error.process is not None and outcome is not None:
            log = next((p.get("log") for p in outcome.processes if p["name"] == error.process), None)
            if log and os.path.isfile(log):
                with Path(log).open("rb") as file:
                    file.seek(max(0, os.path.getsize(log) - LOG_TAIL_BYTES))
                    kept = writer.write_log(
                        f"{error.process.replace(' ', '-')}.log", file.read().decode(errors="replace")
                    )
                return f"{error}; the end of its log is in {kept}"
        if isinstance(error, AsyncDGLError):
            return str(error)
        import traceback

        kept = writer.write_log("traceback.log", "".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {error}; the traceback is in {kept}"

    def _finish(self, writer: RunWriter, outcome: Outcome | None, environment: dict[str, Any]) -> dict[str, Any]:
        from asyncdgl.cli.summary import make_summary

        if outcome is not None:
            writer.write_environment({**environment, "processes": outcome.processes})
        summary = make_summary(self._config, writer, outcome, self._status, self._error, time.monotonic() - self._began)
        writer.write_summary(summary)
        writer.close()
        return summary

    def _draw(self, path: Path) -> None:
        from asyncdgl.rundir import read_run
        from asyncdgl.study.figures import draw_figures

        draw_figures(read_run(path))
