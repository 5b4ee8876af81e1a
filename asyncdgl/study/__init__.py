"""What is made of runs: sweeps, tables, figures and reports."""
