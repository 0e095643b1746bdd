"""An ordinary torchrun script, which knows nothing of adaptrain: ``torchrun --nproc-per-node 2 train.py``.

It saves a snapshot after each epoch, and begins with the newest one.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = int(os.environ.get("EPOCHS", "20"))
SNAPSHOT = Path(os.environ.get("ADAPTRAIN_CHECKPOINT_DIR", ".")) / "snapshot.pt"

cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
y = torch.tensor(digits.target, device=device)
train, (test_x, test_y) = TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])
sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(train)
loader = DataLoader(train, batch_size=64 // dist.get_world_size(), sampler=sampler)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
history: list[float] = []
if SNAPSHOT.exists():
    snapshot = torch.load(SNAPSHOT, map_location=device)
    model.load_state_dict(snapshot["model"])
    optimizer.load_state_dict(snapshot["optimizer"])
    history = snapshot["history"]
replica = DistributedDataParallel(model)

for epoch in range(len(history), EPOCHS):
    sampler.set_epoch(epoch)
    for inputs, classes in loader:
        optimizer.zero_grad()
        F.cross_entropy(replica(inputs), classes).backward()
        optimizer.step()
    history.append((model(test_x).argmax(1) == test_y).float().mean().item())
    if dist.get_rank() == 0:
        print(f"epoch {epoch} on {dist.get_world_size()} processes: accuracy {history[-1]:.3f}", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        torch.save(state, SNAPSHOT.with_suffix(".new"))
        SNAPSHOT.with_suffix(".new").rename(SNAPSHOT)  # whole, or not at all

dist.destroy_process_group()
