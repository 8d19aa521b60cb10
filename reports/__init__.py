"""Studies: each folder has a study.py that regenerates its csv files, figures and README.md; see `python -m reports`."""
