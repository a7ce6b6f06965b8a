"""The common corruptions: one family a function, five severities each; the modules register them."""
