"""The engine on many machines, as an application for Ray Serve; needs the extra: pip install 'louiskv[serve,ray]'."""

from louiskv.serving.ray.builder import Arguments, build

__all__ = ["Arguments", "build"]
