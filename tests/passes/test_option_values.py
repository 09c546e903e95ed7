"""Values that no Program could take are refused where the pass is made: before a model is captured or data are read."""

from __future__ import annotations

import pytest

from burnish import OptionError, Pipeline

UNUSABLE = {
    "precision{max_drift=-1}": "option 'max_drift' must be a number above 0",
    "precision{max_range=nan}": "option 'max_range' must be a number above 0",
    "precision{samples=0}": "option 'samples' must be 1 or more",
    "quantize{bits=9}": "option 'bits' must be from 2 to 8",
    "quantize{samples=0}": "option 'samples' must be 1 or more",
    "smooth-quant{alpha=2}": "option 'alpha' must be from 0 to 1",
    "prune{ratio=1}": "option 'ratio' must be from 0 to less than 1",
    "prune{ratio=0.5,flops=0.5}": "give one of ratio, flops, params and latency",
    "prune{latency=0}": "option 'latency' must be a part above 0",
    'prune{limits=["*=2"]}': "option 'limits' takes patterns with a part from 0 to 1",
    "prune{round_to=0}": "option 'round_to' must be 1 or more",
    "prune-blocks{ratio=-1}": "option 'ratio' must be from 0 to less than 1",
    "recover{steps=0}": "option 'steps' must be 1 or more",
    "recover{steps=1,epochs=1}": "give steps or epochs, not both",
    "recover{distill=none}": "nothing would be trained",
    "insert-exits{exits=0}": "option 'exits' must be 1 or more",
    "insert-exits{exits=1,layers=[2]}": "give one of exits, after and layers",
    "insert-exits{thresholds=[2.0]}": "must be from 0 to 1 for max-probability",
    "insert-exits{rule=patience,thresholds=[inf]}": "patience is a number of exits, 1 or more, not inf",
    "calibrate-exits{delta=1}": "option 'delta' must be between 0 and 1",
    'calibrate-exits{curve="a.txt"}': "option 'curve' must be a .json or .svg",
    "partition{stages=1}": "option 'stages' must be 2 or more",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_refused_as_the_pipeline_is_read(text: str) -> None:
    with pytest.raises(OptionError, match=UNUSABLE[text]):
        Pipeline.parse(text)
