"""Reports: documents, figures and tables about runs and sweeps."""
