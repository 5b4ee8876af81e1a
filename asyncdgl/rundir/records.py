"""The files of a run directory."""

CONFIG, ENVIRONMENT, METRICS, TRACE, SUMMARY = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "trace.jsonl",
    "summary.json",
)
