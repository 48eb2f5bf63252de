"""RIDE: a network per image, trained at test time."""

from lightning_advdef.defenses.ride.module import RIDEModule
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.defenses.ride.surrogates import FastBPDA, UnrolledEstimation

__all__ = ["RIDE", "FastBPDA", "RIDEModule", "UnrolledEstimation"]
