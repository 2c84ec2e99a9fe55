"""Packages that only some of this package needs: which extra brings one that is missing."""

from collections.abc import Mapping

EXTRA_OF: Mapping[str, str] = {
    "transformers": "pretrained",
    "gguf": "pretrained",
    "accelerate": "pretrained",
    "datasets": "datasets",
    "submitit": "cluster",
    "tensorboardX": "tensorboard",
    "peft": "dev",
}
"""By the name that is imported."""


def missing(error: BaseException) -> str | None:
    """What to install where an import has failed for want of such a package; else None."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    return f"{package} is not installed; pip install 'pyro-meta[{extra}]'"
