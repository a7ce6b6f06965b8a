"""Second floor: ways to make a classifier harder to fool, each scored like any other model."""
