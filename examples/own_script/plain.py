"""An ordinary training loop, on one process. ``train.py`` is the same one, elastic."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
train, (test_x, test_y) = TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

loader = DataLoader(train, batch_size=64, shuffle=True)
for epoch in range(20):
    for inputs, classes in loader:
        loss = F.cross_entropy(model(inputs), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"epoch {epoch}: accuracy {accuracy:.3f}", flush=True)
