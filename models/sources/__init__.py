"""Where a user's own network comes from: one file a source, each registered under its prefix."""
