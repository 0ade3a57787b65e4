"""The Hydra configuration of distconv; it is installed as the package `distconv.conf`."""
