"""distconv: convert model checkpoints between layouts, as a parallel distributed job."""

__version__ = "0.1.0"
