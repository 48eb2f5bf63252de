"""What is demanded of our attacks, next to the fastest peer that is as strong as the strongest one."""

from __future__ import annotations

from benchmarks.attacks.cases import CASES
from benchmarks.attacks.networks import NETWORKS

POINTS = 0.005  # robust accuracies this close count as equal
NORM = 1.01  # and so do median norms up to this factor
PASSES = 1.05  # of the passes that are needed when every image leaves as soon as it is broken
BFLOAT16 = 0.6
AGREEMENT = 0.002

_ROBUST = {"PGD": 1.0, "APGD": 1.0, "APGD-DLR": 1.0, "APGD-T": 1.0, "Square": 1.0, "AutoAttack": 0.95}
_ROBUST |= {"FAB": 0.75, "FAB-T": 0.75}
_PER_PASS = 1.15
_NEARLY_ALL_FALL = 0.35


def wanted_time(network: str, attack: str, passes: float, peer_passes: float) -> float | None:
    """Largest ratio of times, None where nothing is demanded.

    Args:
        network: Name in ``NETWORKS``.
        attack: Name in ``CASES``.
        passes: Passes per image that ours needs; what it spends, where that cannot be told.
        peer_passes: Passes per image of the peer.
    """
    known = NETWORKS.get(network)
    if known is None:
        return None
    if attack == "DeepFool":
        return 0.2 if known.data == "mnist" else 0.6
    if attack == "CW":
        return 0.5
    if known.robust:
        return _ROBUST.get(attack)
    if CASES[attack].minimal or attack == "FGSM":  # nothing can be saved there
        return None
    return max(_NEARLY_ALL_FALL, _PER_PASS * passes / peer_passes)


def wanted_bfloat16(network: str, attack: str) -> bool:
    """Whether ``BFLOAT16`` is demanded of the search in bfloat16: where most images survive a demanded attack."""
    known = NETWORKS.get(network)
    return known is not None and known.robust and attack in _ROBUST
