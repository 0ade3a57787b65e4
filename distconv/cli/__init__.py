"""The command line: what Hydra composes, exit statuses, and every word that is printed."""
