"""What makes the numbers of an evaluation doubtful, and what to run next; docs/diagnostics.md says how to read it."""
