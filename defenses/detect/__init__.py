"""Detectors: a score that is to be high on adversarial examples, and a threshold set on clean images."""
