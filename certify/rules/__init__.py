"""What the certificates know of each operation: one file per family."""
