"""What the report of one run says: what it was, how it ended, what each stage and buffer did, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.setting import applies
from asyncdgl.config.yaml import dump_config
from asyncdgl.delays.profiles import DEFAULT_SLOWDOWN
from asyncdgl.report.document import Block, Code, Column, Document, Facts, Picture, Section, Table, Text
from asyncdgl.report.environment import environment_facts
from asyncdgl.report.labels import ALGORITHMS, threads_of_stages
from asyncdgl.report.tables import (
    buffer_table,
    evaluation_table,
    fault_table,
    number,
    stage_tables,
    unit_of,
)
from asyncdgl.rundir.measures import train_seconds
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.summary import stages_of

LOG_TAIL_CHARACTERS = 4000
RUNTIMES = {
    "ray": "ray: a process for each stage and each buffer",
    "sim": "sim: one deterministic process",
    "virtual": "virtual: one process, in virtual time",
}
ENDINGS = {
    "completed": "completed",
    "diverged": "diverged: a loss was not finite",
    "failed": "failed",
    "interrupted": "stopped by Ctrl-C before its end",
    "terminated": "stopped by SIGTERM before its end",
    None: "has not ended, or was killed",
}
FIGURES = {
    "learning_curves": (
        "Learning curves",
        "Above: mean training loss of each stage over its own epochs. Below: accuracy of each stage's head, and of the "
        "ensemble of all heads.",
    ),
    "timeline": (
        "Timeline of the stages",
        "Above: share of the training time in which each stage computed, or waited and why. Below: each pass in a "
        "short stretch of it; thin bars are waits, their order within a gap is not recorded. Between them, where "
        "processes died: from the death (cross) until another one worked in its place.",
    ),
    "staleness": (
        "Staleness and reuse",
        "How old, and how often given before, the entries were that each stage trained on; and the share of the "
        "stream's mini-batches that it passed over.",
    ),
}


def run_document(run: Run, figures: Sequence[Path], notes: Sequence[Text] = ()) -> Document:
    """The report of a run whose figures are drawn."""
    status = None if run.summary is None else run.summary.status
    config = run.config
    names = dict.fromkeys(path.stem for path in figures)
    pictures = [Picture(run.path / "figures", name, *FIGURES[name]) for name in names]
    what = f"{config.algorithm} on {config.runtime}, {config.data.dataset}, seed {config.seed}"
    sections = [
        Section("What was run", [Facts(_settings(config))]),
        Section("Figures", pictures),
        Section("Stages", stage_tables(run)),
        Section("Replay buffers", buffer_table(run.summary)),
        Section("Evaluations", evaluation_table(run)),
        Section("Faults", fault_table(run.summary)),
        Section("Logs of what failed", [Code(text, f"logs/{name}") for name, text in _log_tails(run.path)]),
        Section("Environment", [Facts(environment_facts(run.environment))]),
        Section("How to repeat it", _repetition(run)),
        Section("Configuration", [Code(dump_config(config))]),
    ]
    return Document(
        title=config.name,
        subtitle=f"A run of asyncdgl: {what}",
        status=ENDINGS[status],
        well=status == "completed",
        notes=[*_notes(run, status), *notes],
        headline=_headline(run),
        sections=[section for section in sections if section.blocks],
    )


def _notes(run: Run, status: str | None) -> list[Text]:
    if status is None:
        return [
            Text(
                "There is no summary.json: the run was killed, or still goes on. The numbers below come from its trace "
                "and its metrics as far as they were written.",
                warning=True,
            )
        ]
    if status == "completed":
        return []
    error = run.summary.error if run.summary is not None else None
    known = "The numbers below cover what was computed until then."
    return [Text(f"Error: {error}\n{known}" if error else known, warning=True)]


def _headline(run: Run) -> list[tuple[str, str]]:
    unit, summary = unit_of(run.config), run.summary
    if summary is None:
        rows = [(f"test accuracy after epoch {e.epoch}", number(e.test_accuracy[-1])) for e in run.evaluations[-1:]]
        rows.append((f"trained for ({unit})", number(train_seconds(run.records), ".1f")))
        return [*rows, ("passes", str(len(run.records)))]
    rows = []
    if run.config.has_tensors:
        rows.append(("test accuracy (last stage)", number(summary.test_accuracy)))
        rows.append(("test accuracy (ensemble)", number(summary.ensemble_test_accuracy)))
    if summary.validation_accuracy is not None:
        rows.append(("validation accuracy (last stage)", number(summary.validation_accuracy)))
        rows.append(("validation accuracy (ensemble)", number(summary.ensemble_validation_accuracy)))
    if run.config.runtime == "virtual":
        rows.append((f"virtual time ({unit})", number(summary.train_seconds, ".1f")))
    if run.config.runtime == "ray":
        rows.append((f"training time ({unit})", number(summary.train_seconds, ".1f")))
        rows.append(("time in all (s)", number(summary.wall_seconds, ".1f")))
        rows.append(("images per second", number(summary.images_per_second, ".0f")))
    return rows


def _settings(config: ResolvedConfig) -> list[tuple[str, str]]:
    data, model, buffer, optim = config.data, config.model, config.buffer, config.optim
    parts = f"{model.blocks} blocks of width {model.width} in {config.stages} stages"
    every = f"every {optim.lr_decay_every} epochs"
    if optim.lr_milestones is not None:
        every = f"at epochs {', '.join(map(str, optim.lr_milestones))}"
    rows = [
        ("algorithm", f"{config.algorithm}: {ALGORITHMS[config.algorithm]}"),
        ("runtime", RUNTIMES[config.runtime] + (f", pace {config.pace}" if applies(config, "pace") else "")),
    ]
    if config.has_tensors:
        rows += [
            ("data", f"{data.dataset}, {data.image_size}x{data.image_size}{', augmented' if data.augment else ''}"),
            ("network", parts + (f", auxiliary network {model.aux}" if applies(config, "model.aux") else "")),
            ("training", f"{config.epochs} epochs of each stage, mini-batches of {config.batch_size} images"),
            ("optimizer", f"SGD, learning rate {optim.lr:g}, divided by {optim.lr_decay_factor:g} {every}"),
            ("arithmetic", f"{config.precision} on {config.device}, {threads_of_stages(config)}"),
        ]
    else:
        rows.append(
            ("training", f"none: who reads which entry when, in {config.epochs} epochs of {config.stages} stages")
        )
    if applies(config, "buffer.size"):
        reuse = "" if buffer.max_reuse is None else f", each entry given at most {buffer.max_reuse} times"
        rows.append(
            ("replay buffers", f"M = {buffer.size} mini-batches, sampler {buffer.sampler}, codec {buffer.codec}{reuse}")
        )
    if applies(config, "delays.profile"):
        slow = applies(config, "delays.slowdown")
        factor = f", S = {config.delays.slowdown or DEFAULT_SLOWDOWN:g}" if slow else ""
        rows.append(("delay profile", config.profile.name + factor))
    return [*rows, ("seed", str(config.seed))]


def _log_tails(folder: Path) -> list[tuple[str, str]]:
    logs = sorted(path for path in (folder / "logs").glob("*") if path.is_file())
    return [(path.name, path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]) for path in logs]


def _repetition(run: Run) -> list[Block]:
    commands = "asyncdgl run --config config.yaml    # the same settings"
    if run.config.runtime == "ray" and run.records:
        commands += "; which stage is faster when differs each time\n"
        commands += "asyncdgl replay .                    # the same passes, compared bit for bit"
    blocks: list[Block] = [Text("In this folder:"), Code(commands)]
    hashes = [[str(s.stage), s.state_sha256] for s in stages_of(run) if s.state_sha256 is not None]
    if hashes:
        columns = [Column("stage"), Column("SHA-256 of its final state", words=True)]
        blocks.append(Table(columns, hashes))
    return blocks
