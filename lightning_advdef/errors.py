"""Errors that a caller may want to catch; every message is one sentence with the remedy."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set is not where it was looked for."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the network."""


class ResultFolderError(FileExistsError):
    """A result folder holds the result of a different run."""
