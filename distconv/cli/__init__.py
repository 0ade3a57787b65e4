"""The command line: its options composed by Hydra, its exit statuses, and all printed text."""
