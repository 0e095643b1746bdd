"""The example's accuracy: 5 seeds on a fixed stratified split, stopped by validation. Value: mean test accuracy.

The peer is scikit-learn's support vector classifier (RBF kernel, its defaults) on the same split.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from adaptrain.config.manifest import read_job
from adaptrain.data.digits import digits
from adaptrain.local.processes import LocalJob
from sklearn.svm import SVC

from bench.report import emit
from tests.e2e.local_jobs import finished

SEEDS = range(5)

if __name__ == "__main__":
    job = read_job(Path(__file__).parents[1] / "examples" / "digits.yaml")
    scores = []
    for seed in SEEDS:
        seeded = job.model_copy(update={"spec": job.spec.model_copy(update={"seed": seed})})
        with tempfile.TemporaryDirectory() as scratch, LocalJob(seeded, checkpoints=Path(scratch)) as local:
            local.start_coordinator()
            for _ in range(job.spec.workers.wanted):
                local.start_worker()
            result = finished(local).result
            assert result is not None
            scores.append(result.metrics["test/accuracy"])
            print(f"seed {seed}: {scores[-1]:.4f} at step {result.step}, {result.message}", flush=True)
    data = digits()
    assert data.test is not None
    (x, y), (tx, ty) = (s.fetch(torch.arange(len(s))) for s in (data.train, data.test))
    peer = SVC().fit(x.flatten(1).numpy(), y.numpy()).score(tx.flatten(1).numpy(), ty.numpy())
    value = statistics.mean(scores)
    emit("digits", value, "accuracy", "scikit-learn SVC", float(peer), value >= 0.97, lowest=min(scores))
