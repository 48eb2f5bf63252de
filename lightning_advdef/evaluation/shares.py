"""What each process of an evaluation did, and how long it had nothing to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_advdef.evaluation.rows import Rows

Share = Mapping[str, float]


def share_of(judged: Sequence[Rows], scenarios: Iterable[str], seconds: float) -> dict[str, float]:
    """What one process did.

    Args:
        judged: Rows of its batches.
        scenarios: Their names.
        seconds: From the start of its work to the end of its last batch.

    Returns:
        ``images``, ``seconds``, and the ``passes`` of all images together, forward and backward.
    """
    columns = [f"{name}/{kind}" for name in scenarios for kind in ("forward", "backward")]
    passes = sum(float(rows[column].sum()) for rows in judged for column in columns)
    return {"images": sum(len(rows["index"]) for rows in judged), "seconds": seconds, "passes": passes}


def idle(shares: Sequence[Share], measure: str = "seconds") -> float:
    """Share of the whole time, in [0, 1], for which the process that was ready first had nothing to do."""
    amounts = [share[measure] for share in shares]
    return 1 - min(amounts) / max(amounts) if max(amounts) > 0 else 0.0


def in_words(shares: Sequence[Share]) -> str:
    """A line about the division of work."""
    images = ", ".join(f"{share['images']:.0f}" for share in shares)
    return f"{len(shares)} processes judged {images} images; the first one ready waited {idle(shares):.1%} of the time"
