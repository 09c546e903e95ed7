"""The pass that makes a Program compute in half precision where that is safe: explicit casts, islands of float32."""

from burnish.passes.precision.precision import Precision

__all__ = ["Precision"]
