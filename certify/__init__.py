"""Lower bounds: every certificate proves that there is no counterexample and so pushes robust accuracy up."""
