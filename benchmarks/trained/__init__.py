"""Real trained models with real data, on which what a pass costs in accuracy is judged.

    trained = fashion_mnist()
    task = trained.tasks[0]
    reference = task.rows(trained.model)
    task.score(reference)                              # the score and its standard error
    task.drop(task.rows(compiled), reference)          # how much worse, and the standard error of the difference

`python -m benchmarks.trained` prints the scores. EfficientNet-Lite0, MiniLM-L6 and the digits come with
`pip install burnish[demo]`; Fracast and ELPV with `burnish[bench]`; Fashion-MNIST is a Debian package.
"""

from __future__ import annotations

from benchmarks.trained.digits import digits
from benchmarks.trained.fashion import fashion_mnist
from benchmarks.trained.forecasts import fracast
from benchmarks.trained.pictures import efficientnet_lite0, elpv_probe
from benchmarks.trained.sentences import minilm
from benchmarks.trained.task import Inputs, NotInstalled, Task, Trained, call

__all__ = [
    "MODELS",
    "Inputs",
    "NotInstalled",
    "Task",
    "Trained",
    "call",
    "digits",
    "efficientnet_lite0",
    "elpv_probe",
    "fashion_mnist",
    "fracast",
    "minilm",
]

MODELS = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "efficientnet-lite0": efficientnet_lite0,
    "elpv-probe": elpv_probe,
    "minilm": minilm,
    "fracast": fracast,
}
