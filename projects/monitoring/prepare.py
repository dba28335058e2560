"""Trains the model, works out the limits, and writes both for the service: python prepare.py [folder]."""

import sys
from pathlib import Path

import model
import numpy as np
import world
from detector import Detector

STRANGER = 12  # the form whose writer the model has never seen
TRAIN, REFERENCE = 400, 600  # images; what is left is calm traffic
WINDOW = 50  # images


def split(seed=0):
    """Return digits to train with, the reference, the pool of calm traffic, and those of the stranger."""
    everything = world.digits()
    known = np.flatnonzero(everything.forms != STRANGER)
    order = np.random.default_rng(seed).permutation(known)
    parts = np.split(order, [TRAIN, TRAIN + REFERENCE])
    return *(everything[part] for part in parts), everything[everything.forms == STRANGER]


def prepare(folder):
    """Write model.npz and reference.npz; return the model and the detector."""
    train, reference, _, _ = split()
    trained = model.train(train.images, train.labels)
    detector = Detector.fit(trained.answer(reference.images)[2], WINDOW)
    Path(folder).mkdir(parents=True, exist_ok=True)
    trained.save(Path(folder) / "model.npz")
    detector.save(Path(folder) / "reference.npz")
    return trained, detector


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    target = target if len(sys.argv) > 1 else target.parent
    prepare(target)
    print(f"{target / 'model.npz'} and {target / 'reference.npz'} are written")
