"""An exponential moving average of the weights, which is what is evaluated: ``ema.py PASSES inside|outside``."""

import os
import sys
import time

import torch
import torch.nn.functional as F
from adaptrain.elastic import Elastic
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

PACE = float(os.environ.get("PACE", "0"))
torch.manual_seed(0)
x, y = torch.randn(90, 5).double(), torch.randint(0, 3, (90,))
net = nn.Sequential(nn.Linear(5, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).double()
ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True).requires_grad_(False)
model = nn.ModuleDict({"net": net, "ema": ema}) if sys.argv[2] == "inside" else net

with Elastic(model, torch.optim.AdamW(net.parameters(), lr=0.01), TensorDataset(x, y), batch_size=20) as elastic:
    for _ in elastic.epochs(int(sys.argv[1])):
        for inputs, classes in elastic:
            time.sleep(PACE)
            if elastic.step(F.cross_entropy(net(inputs), classes)):
                ema.update_parameters(net)
        elastic.report(**{"val/loss": F.cross_entropy(ema.eval()(x), y).item()})
