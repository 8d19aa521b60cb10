"""Converted digits networks, made once a worker and copied for every test."""

import copy
from functools import cache

import pytest
import torch

from speedysnn.assets.digits import load_digits_net
from speedysnn.convert import to_spiking
from speedysnn.data import load

torch.set_num_threads(1)


@cache
def _converted(pool, timesteps, spikes):
    return to_spiking(load_digits_net(pool), load("digits", "train", limit=200), timesteps=timesteps, spikes=spikes)


@pytest.fixture(scope="session")
def build():
    """A function that gives a fresh converted network."""

    def make(pool="avg", timesteps=4, delay=0, spikes="binary"):
        snn = copy.deepcopy(_converted(pool, timesteps, spikes))
        snn.set_delay(delay)
        return snn

    return make


@pytest.fixture(scope="session")
def digits():
    """Images (130, 1, 8, 8) and labels of the test split: two whole passes and a rest at T = 4."""
    data = load("digits", "test", limit=130)
    return torch.stack([x for x, _ in data]), torch.tensor([int(y) for _, y in data])
