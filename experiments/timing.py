"""What the benchmarks on both devices share: how a time is taken, and minicnn's training step by itself."""

import time

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor
from minicnn.ops import cross_entropy
from minicnn.optim import NesterovSGD

BATCH = 128
LEARNING_RATE = 0.1


def measure(contestants, repeats, warm_up=2, wait=lambda: None):
    """Call every function in turn, `repeats` times round after the rounds to warm up. Returns name -> list of seconds.

    wait() returns when a device has finished. The short rest lets the threads of the one before stop spinning.
    """
    seconds = {name: [] for name in contestants}
    for round_ in range(warm_up + repeats):
        for name, function in contestants.items():
            time.sleep(0.005)
            wait()
            start = time.perf_counter()
            function()
            wait()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def training_step(network, images, labels, seed=0):
    """A function that makes one step of training.fit on its next batch of the images."""
    kernels, like = backend.of(images).kernels, backend.of(images).xp
    order, counter = like.arange(len(images), dtype=np.int32), like.zeros(1, np.uint32)
    mean = like.full(BATCH, 1 / BATCH, images.dtype)
    rate = like.full(1, LEARNING_RATE, images.dtype)
    optimiser = NesterovSGD(network.parameters(), rate, l2={"dense3_W": 0.01})

    def step():
        batch = Tensor(kernels.gather(images, order, counter, BATCH))
        target = kernels.gather(labels, order, counter, BATCH)
        cross_entropy(network(batch, (seed, counter)), target).backward(mean)
        optimiser.step()
        kernels.advance(counter)

    return step
