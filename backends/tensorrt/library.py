"""The TensorRT that is installed: whether it can be used, its version, and the table of `burnish check` for it.

Nothing here needs TensorRT; `building` and `execution` do, and are imported where `reason` has nothing to say.
"""

from __future__ import annotations

from burnish.backends.readiness import Target, target_names
from burnish.backends.tensorrt import device
from burnish.compiler.errors import BackendError, MissingDependencyError

__all__ = ["package_reason", "reason", "release_of", "require", "target", "version"]

_OLDEST = (10, 12)
_PREFIX = "tensorrt-"
_ELSEWHERE = "; `save` a .trtbundle and run `burnish build-trt` where both are"


def package_reason() -> str:
    """Return why the `tensorrt` package cannot build engines, as far as it tells; "" where it can."""
    try:
        import tensorrt
    except ImportError as error:
        return "not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
    # Other packages go by the same name, and an incomplete one imports without its libraries.
    if not hasattr(tensorrt, "Builder"):
        return "the installed package has no Builder, so it is not NVIDIA's"
    if release_of(tensorrt.__version__) < _OLDEST:
        return f"version {tensorrt.__version__} is too old: 10.12 or later is needed"
    return ""


def reason() -> str:
    """Return why no engine can be built or run here; "" where one can."""
    missing = package_reason()
    found = [f"TensorRT: {missing}"] if missing else []
    return "; ".join(found if device.count() else [*found, "no GPU that PyTorch sees"])


def require(purpose: str) -> None:
    """Check that engines can be built and run here.

    Raises:
        MissingDependencyError: TensorRT cannot be used.
        BackendError: there is no GPU.
    """
    missing = package_reason()
    if missing:
        raise MissingDependencyError(
            f"{purpose} needs TensorRT 10.12 or later ({missing}): pip install 'burnish[tensorrt]'"
        )
    if not device.count():
        raise BackendError(f"{purpose} needs a GPU, and PyTorch sees none{_ELSEWHERE}")


def version() -> str:
    """Return the version of the TensorRT that is installed, "10.13.2.6"."""
    import tensorrt

    return tensorrt.__version__


def release_of(text: str) -> tuple[int, int]:
    """Return major and minor number of a version."""
    parts = [int(digits) if (digits := each[:4]).isdigit() else 0 for each in text.split(".")]
    return parts[0], parts[1] if len(parts) > 1 else 0


def target() -> Target:
    """Return what `burnish check` knows of the installed TensorRT; of the oldest 11 where none is usable.

    A release that the table does not have yet is taken for the newest before it.
    """
    if package_reason():
        return Target.parse(f"{_PREFIX}11")
    here = release_of(version())
    names = [each for each in target_names() if each.startswith(_PREFIX) and "." in each]
    known = [each for each in names if release_of(each.removeprefix(_PREFIX)) <= here]
    return Target.parse(known[-1])
