"""Private split inference: train split models that resist inversion, attack them, report what leaks."""

__version__ = "0.1.0"
