"""A generative adversarial network with batch normalization: ``gan.py PASSES one|two``.

One optimizer with a group for each network, and one loss: the generator's goes through the discriminator's weights as
they are. With two optimizers, as in many a tutorial, the second would be nobody's but this worker's.
"""

import os
import sys
import time

import torch
import torch.nn.functional as F
from adaptrain.elastic import Elastic
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

PACE = float(os.environ.get("PACE", "0"))
torch.manual_seed(0)
data = TensorDataset(torch.randn(96, 6).double() * 0.5 + 1, torch.randn(96, 4).double())
generator = nn.Sequential(nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
discriminator = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
model = nn.ModuleDict({"generator": generator, "discriminator": discriminator}).double()
groups = [{"params": generator.parameters(), "lr": 1e-3}, {"params": discriminator.parameters(), "lr": 4e-3}]
if sys.argv[2] == "two":
    optimizer, other = (torch.optim.Adam([group], betas=(0.5, 0.999)) for group in groups)
else:
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))

with Elastic(model, optimizer, data, batch_size=24) as elastic:
    for _ in elastic.epochs(int(sys.argv[1])):
        for real, noise in elastic:
            time.sleep(PACE)
            fake = generator(noise)
            loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
            if sys.argv[2] == "two":
                other.zero_grad()
                loss.backward()
                other.step()
                loss = F.softplus(-discriminator(fake)).mean()
            else:
                fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
                loss = loss + F.softplus(-functional_call(discriminator, fixed, (fake,))).mean()
            elastic.step(loss)
