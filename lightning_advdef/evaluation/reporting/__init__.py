"""Reports of runs as files: HTML, Markdown, CSV, RobustBench's record."""
