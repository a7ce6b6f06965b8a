"""Upper bounds: every attack searches for a counterexample and so pushes robust accuracy down."""
