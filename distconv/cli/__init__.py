"""The command line: its options, composed by Hydra unless they are plain; exit statuses, and all printed text."""
