"""timm's ResNet with batch normalization, as it comes, and a scheduler by epoch."""

import os
import sys
import time

import timm
import torch
import torch.nn.functional as F
from adaptrain.elastic import Elastic
from torch.utils.data import TensorDataset

PACE = float(os.environ.get("PACE", "0"))
torch.manual_seed(0)
x, y = 3 + 2 * torch.randn(52, 3, 16, 16).double(), torch.randint(0, 4, (52,))
model = timm.create_model("resnet10t", num_classes=4, stem_width=8, channels=(8, 8, 16, 16)).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

with Elastic(model, optimizer, TensorDataset(x, y), batch_size=12, scheduler=scheduler) as elastic:
    for _ in elastic.epochs(int(sys.argv[1])):
        model.train()
        for inputs, classes in elastic:
            time.sleep(PACE)
            elastic.step(F.cross_entropy(model(inputs), classes, label_smoothing=0.1))
        scheduler.step()
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(x), y).item()
        elastic.report(**{"val/loss": loss})
        if loss < elastic.memory.get("best", float("inf")):
            elastic.memory["best"] = loss
            elastic.keep_best()
