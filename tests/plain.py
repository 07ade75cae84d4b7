"Training as one would write it without this package: what a run must give, from a second derivation."
import math

import numpy as np
import torch
import torch.nn.functional as F

from kdnb.models.pretrained import network

MASK = 0xFFFFFFFF


def mixed(x):
    "One round of mixing of a 32-bit word."
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK
    return x ^ (x >> 16)


def hashed(seed, epoch, image, stream):
    "The 32-bit word of an image in an epoch."
    word = 0
    for part in (seed, epoch, stream): word = mixed(word + part * 0x9E3779B9 + 0x7F4A7C15 & MASK)
    return mixed(word ^ mixed(image))


def visited(seed, epoch, n):
    "The images in the order in which an epoch visits them."
    return sorted(range(n), key=lambda i: (hashed(seed, epoch, i, 1), i))


def drawn_views(seed, epoch, images, count):
    "The number of the view of each image."
    return [hashed(seed, epoch, i, 2) * count >> 32 for i in images]


def padded_views(x, pad, flip):
    "All views of an image `[ch, h, w]`: crops of it, row by row, then their mirror images."
    h, w = x.shape[1:]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    crops = [padded[:, i:i + h, j:j + w] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return crops + [crop[:, :, ::-1] for crop in crops] * flip


def shown(images, seed, epoch, index):
    "What an epoch shows of some images, as numbers with mean 0 and deviation 1."
    views = [padded_views(images.train_x[i].numpy(), images.pad, images.flip) for i in index]
    x = np.stack([own[number] for own, number in zip(views, drawn_views(seed, epoch, index, len(views[0])))])
    return normalised(torch.from_numpy(x), images)


def normalised(x, images):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (images.mean, images.std))
    return ((x.double() / 255 - mean) / std).float()


class HandSGD:
    "Momentum as in the textbook: the gradient with weight decay is added to what is left of the last direction."
    def __init__(self, parameters, momentum=0.9, decay=5e-4, nesterov=True):
        self.parameters, self.momentum, self.decay, self.nesterov = list(parameters), momentum, decay, nesterov
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, loss, lr):
        for p, v, g in zip(self.parameters, self.velocity, torch.autograd.grad(loss, self.parameters)):
            g = g + self.decay * p
            v.mul_(self.momentum).add_(g)
            p.sub_(lr * (g + self.momentum * v if self.nesterov else v))


def begun(name, images, seed):
    "A network as a run of a seed begins with it."
    torch.manual_seed(seed)
    return network(name, images, start=True)


def train_plainly(net, images, seed, epochs, batch, rate, loss_of, nesterov=True, first=0, inputs=shown, parameters=None, decay=5e-4):
    "Trains a network; `rate` gives the learning rate of a share of the steps, `loss_of` the loss of x, y and positions. Gives each epoch's mean loss."
    n, sums = len(images.train_x), []
    steps = n // batch
    optimiser = HandSGD(parameters or net.parameters(), decay=decay, nesterov=nesterov)
    for epoch in range(epochs):
        order, total = visited(seed, first + epoch, n), 0.0
        for k in range(steps):
            index = order[k * batch:(k + 1) * batch]
            loss = loss_of(inputs(images, seed, first + epoch, index), images.train_y[index], index)
            optimiser.step(loss, rate((epoch * steps + k) / (epochs * steps)))
            total += float(loss.detach())
        sums.append(total / steps)
    return sums


def risen_and_fallen(lr, warmup):
    "A linear rise over a share of the steps and a linear fall to zero."
    return lambda done: lr * (done / warmup if done < warmup else (1 - done) / (1 - warmup))


def cosine(lr): return lambda done: lr / 2 * (1 + math.cos(math.pi * done))


def cut(lr, epochs, after):
    "A tenth after each of some numbers of epochs."
    return lambda done: lr / 10**sum(math.floor(done * epochs + 1e-9) >= epoch for epoch in after)


def soft_labels(s, t, T):
    "Hinton's loss: T² times the divergence of softened distributions."
    return T**2 * F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")


@torch.no_grad()
def accuracy(net, x, y, images):
    "Percent of images whose highest logit is their label's."
    net.eval()
    return 100 * float((net(normalised(x, images)).logits.argmax(1) == y).double().mean())
