"""A user's own images: one file a layout, each registered under its prefix."""
