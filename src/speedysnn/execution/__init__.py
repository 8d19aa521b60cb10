"""Running a graph: one interpreter, its passes, streaming and observers."""
