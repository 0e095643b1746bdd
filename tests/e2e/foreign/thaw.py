"""Fine-tuning: a backbone with frozen batch normalization, which thaws after some passes; a loss over tokens."""

import os
import sys
import time

import torch
import torch.nn.functional as F
from adaptrain.elastic import Elastic
from torch import nn
from torch.utils.data import TensorDataset

PACE = float(os.environ.get("PACE", "0"))
torch.manual_seed(0)
x, tokens = torch.randn(75, 5).double(), torch.randint(0, 4, (75, 6))
for i, length in enumerate(torch.randint(0, 7, (75,)).tolist()):
    tokens[i, length:] = -100
backbone = nn.Sequential(nn.Linear(5, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU())
model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(12, 24)}).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with Elastic(model, optimizer, TensorDataset(x, tokens), batch_size=16) as elastic:
    for _ in elastic.epochs(passes := int(sys.argv[1])):
        for inputs, targets in elastic:
            time.sleep(PACE)
            thawed = elastic.epoch >= passes // 2
            backbone.train(thawed).requires_grad_(thawed)
            logits = model["head"](model["backbone"](inputs)).view(-1, 4)
            elastic.weight((targets != -100).sum())
            loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100)
            if elastic.step(loss) and elastic.steps % 7 == 0:
                break
