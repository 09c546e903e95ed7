"""What produces every figure that README and docs/ state: `python -m benchmarks.NAME` from the checkout."""
